//! Files of the original's own trainers, read unchanged.

use burn::tensor::Device;
use burn_var::models::aid::{DiscriminatorHeads, DiscriminatorHeadsConfig, Injector, Projector, VitProjector};
use burn_var::models::dino::{Vit, VitConfig};
use burn_var::models::var::{Var, VarConfig, VqVae};
use burn_var::weights::{LoadOptions, Pretrained, StateDict};
use burn_var::{MapSize, Result, TeacherForced, TokenPyramid, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use serde_json::{Map, Value};

use super::{aid_injector, var, vqvae};

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let files: Map<String, Value> = case.get("/files");
    let mut tokenizer = None;
    // The tokenizer first: a bare transformer's file needs one beside it to generate.
    let mut names: Vec<&String> = files.keys().collect();
    names.sort_by_key(|name| !name.contains("vqvae"));
    for name in names {
        let dict = StateDict::open(case.file(name))?;
        // In a JSON pointer a `/` of a name would have to be escaped; file names have none.
        let about = format!("/files/{name}");
        if dict.sections().contains(&Injector::KIND) {
            let judge = dict.section(DiscriminatorHeads::KIND)?;
            entries(case, &dict.section(Injector::KIND)?, &format!("{about}/planner_entries"), checks);
            entries(case, &judge, &format!("{about}/discriminator_entries"), checks);
            injector(case, &dict, &about, device, checks)?;
            discriminator(case, &judge, &about, device, checks)?;
        } else if dict.sections().contains(&Var::KIND) {
            entries(case, &dict.section(Var::KIND)?, &format!("{about}/var_entries"), checks);
            trainer(case, &dict, &about, device, checks)?;
        } else if dict.contains("quantize.embedding.weight") {
            entries(case, &dict, &format!("{about}/entries"), checks);
            tokenizer = Some(bare_tokenizer(case, &dict, &about, device, checks)?);
        } else {
            entries(case, &dict, &format!("{about}/entries"), checks);
            match &tokenizer {
                Some(tokenizer) => bare_transformer(case, &dict, &about, tokenizer, checks)?,
                None => checks.fail(format!("`{name}` has no tokenizer beside it")),
            }
        }
    }
    Ok(())
}

/// Compares every tensor of a file, by name, shape and fingerprint.
fn entries(case: &Case, dict: &StateDict, pointer: &str, checks: &mut Checks<'_>) {
    let tolerance = case.tolerance("entries", "entries");
    let expected: Map<String, Value> = case.get(pointer);
    let missing: Vec<_> = expected.keys().filter(|key| !dict.contains(key) && !is_cache(key)).collect();
    let extra: Vec<_> = dict.keys().filter(|key| !expected.contains_key(*key)).collect();
    checks
        .require(missing.is_empty() && extra.is_empty(), || format!("{pointer}: missing {missing:?}, extra {extra:?}"));
    for (key, expected) in expected.iter().filter(|(key, _)| dict.contains(key)) {
        let name = format!("{pointer}, {key}");
        match dict.tensor(key).map(|data| (data.shape().to_vec(), data.try_into_vec_as())) {
            Ok((shape, Ok(values))) => {
                checks.fingerprint(&name, &format!("ckpt:{key}"), &Array { shape, values }, expected, tolerance);
            }
            Ok((_, Err(error))) => checks.fail(format!("{name}: {error}")),
            Err(error) => checks.fail(format!("{name}: {error}")),
        }
    }
}

/// Returns true for the injector's cache of positions for one length (`pos_9`). A file holds those of the lengths used
/// before it was saved; cases also list one that was used after.
fn is_cache(key: &str) -> bool {
    key.strip_prefix("pos_").is_some_and(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Loads a tokenizer whose sizes come from the file, and compares them with the case.
fn tokenizer_of(case: &Case, dict: &StateDict, about: &str, device: &Device, checks: &mut Checks<'_>) -> Result<VqVae> {
    let config = format!("{about}/config");
    let expected = vqvae::config(case, &[&format!("{config}/vae"), &config]);
    let found = VqVae::config_of(dict, Some(&expected.patch_nums))?;
    checks.require(found == expected, || format!("{about}: expected {expected:?}, found {found:?}"));
    VqVae::load_with(dict, &expected, LoadOptions::default(), device)
}

fn bare_tokenizer(
    case: &Case,
    dict: &StateDict,
    about: &str,
    device: &Device,
    checks: &mut Checks<'_>,
) -> Result<VqVae> {
    let model = tokenizer_of(case, dict, about, device, checks)?;
    let tokens = model.encode(case.tensor("vqvae.image", device), model.scales())?;
    checks.ids("vqvae.ids", "ids", tokens.sequence());
    if let Some(canvas) = model.canvases(&tokens).pop() {
        checks.floats("vqvae.rec", "floats", model.decode(canvas));
    }
    Ok(model)
}

fn bare_transformer(
    case: &Case,
    dict: &StateDict,
    about: &str,
    tokenizer: &VqVae,
    checks: &mut Checks<'_>,
) -> Result<()> {
    let device = tokenizer.codebook().device();
    let config = sizes(case, dict, about, checks)?;
    let transformer = Var::load_with(dict, &config, LoadOptions::default(), &device)?;
    let strength = guidance_strength(case);
    let conditions = case.conditions("var.labels", config.num_classes);
    let generated = var::greedy(tokenizer, &transformer, &conditions, strength)?;
    checks.ids("var.ids", "ids", generated.result.tokens.sequence());
    if let Some(last) = generated.logits.into_iter().last() {
        checks.floats("var.logits_last", "floats", last);
    }
    Ok(())
}

/// Reads the transformer's sizes from the file, the scale schedule too, and compares them with the case.
fn sizes(case: &Case, dict: &StateDict, about: &str, checks: &mut Checks<'_>) -> Result<VarConfig> {
    let expected = var::config(case, &format!("{about}/config"));
    let found = Var::config_of(dict, None)?;
    let found = VarConfig { drop_path_rate: expected.drop_path_rate, ..found };
    checks.require(found == expected, || format!("{about}: expected {expected:?}, found {found:?}"));
    Ok(found)
}

/// Reads the strength of classifier-free guidance, which the case gives in words: `greedy, cfg 1.5`.
fn guidance_strength(case: &Case) -> f64 {
    let words: String = case.get("/arrays/var.ids/what");
    let after = words.split("cfg ").nth(1).and_then(|rest| rest.split([' ', ',']).next()?.parse().ok());
    after.unwrap_or_else(|| panic!("case `{}`: `{words}` names no cfg", case.name()))
}

fn trainer(case: &Case, dict: &StateDict, about: &str, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let tokenizer = tokenizer_of(case, dict, about, device, checks)?;
    let config = sizes(case, dict, about, checks)?;
    let transformer = Var::load_with(dict, &config, LoadOptions::default(), device)?;
    let tokens = TokenPyramid::from_sequence(tokenizer.scales().clone(), case.ids("trainer.gt_ids", device))?;
    let conditions = case.conditions("trainer.labels", config.num_classes);
    let logits = transformer.teacher_forced(&conditions, tokenizer.teacher_input(&tokens), tokens.scales(), None)?;
    checks.floats("trainer.tf_logits", "floats", logits);
    Ok(())
}

/// Loads the injector of AID-VAR's trainer, and compares its maps of a 2x2 scale for targets of all sizes.
fn injector(case: &Case, dict: &StateDict, about: &str, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let injector = Injector::load(dict, device)?;
    let expected = aid_injector::config(case, &format!("{about}/planner_config"));
    let found = injector.config();
    checks.require(*found == expected, || format!("{about}: expected {expected:?}, found {found:?}"));
    let tokens = case.tensor::<3>("aid.planner_x", device);
    let from = MapSize::square(tokens.dims()[1].isqrt());
    for name in case.arrays_of_role("expected") {
        let Some(side) = name.strip_prefix("aid.planner_y_pn") else { continue };
        let side = side.parse().unwrap_or_else(|error| panic!("case `{}`: `{name}`: {error}", case.name()));
        checks.floats(&name, "floats", injector.forward(tokens.clone(), from, MapSize::square(side), None)?);
    }
    Ok(())
}

/// Loads the discriminator of AID-VAR's trainer, frozen encoder and heads, and compares its logits of images.
fn discriminator(case: &Case, dict: &StateDict, about: &str, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let part = |prefix: &str| {
        let prefix = format!("discriminator.discriminator.{prefix}");
        dict.strip_prefix(&prefix).unwrap_or_else(|| panic!("case `{}`: no tensor under `{prefix}`", case.name()))
    };
    let encoder = part("dino.model.model.");
    // Shapes do not determine the number of heads.
    let num_heads = case.get(&format!("{about}/vit_config/num_heads"));
    let config = VitConfig { num_heads, ..Vit::config_of(&encoder, None)? };
    let vit = Vit::load_with(&encoder, &config, LoadOptions::default(), device)?;
    let projector = VitProjector::new(vit, case.get(&format!("{about}/vit_config/hooks")))?;
    let config = DiscriminatorHeadsConfig::aid(config.embed_dim);
    let heads = DiscriminatorHeads::load_with(&part("heads."), &config, LoadOptions::default(), device)?;
    let features = projector.features(case.tensor("aid.image", device))?;
    checks.floats("aid.logits", "floats", heads.forward(&features, None)?);
    Ok(())
}
