//! The FlexVAR transformer and its generation, against `models/flexvar.py` of FlexVAR.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::models::flexvar::{FlexVae, FlexVar, FlexVarConfig};
use burn_var::ops::transpose;
use burn_var::sampling::Sampler;
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{BatchRequest, Condition, MapSize, Result, Scales, TeacherForced, generate};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::weightgen::WeightGen;
use serde_json::{Value, json};

use super::flexvae;

/// The names of the fields of a transformer's configuration in the cases.
const FIELDS: [&str; 8] =
    ["depth", "embed_dim", "num_heads", "mlp_ratio", "norm_eps", "shared_aln", "attn_l2_norm", "num_classes"];

/// Builds tokenizer and transformer with weights from the recipe, through the loader of real checkpoints.
fn models(case: &Case, device: &Device) -> Result<(FlexVae, FlexVar)> {
    let schedules: Vec<Vec<usize>> = case.get("/config/inference_patch_nums");
    let scales = Scales::square(&schedules[0])?;
    let vae = flexvae::config(case, "/config/vae", scales.clone());
    let gain = case.find("/config/vae/weightgen_gain").unwrap_or(1.0);
    let tokenizer = flexvae::from_recipe(&vae, &WeightGen { gain, ..WeightGen::default() }, device)?;

    let mut fields: Value = case.pick(&["/config"], &FIELDS);
    fields["vocab_size"] = json!(vae.vq.codebook_size);
    fields["z_channels"] = json!(vae.vq.codebook_embed_dim);
    fields["patch_nums"] = json!(scales);
    let config: FlexVarConfig = serde_json::from_value(fields)
        .unwrap_or_else(|error| panic!("case `{}`: sizes of the transformer: {error}", case.name()));
    let recipe: WeightGen = case.get("/weightgen");
    // A table of positions that the recipe skips keeps the values that an untrained model starts with.
    let start = config.init(Default::default(), 0, device)?;
    let weights = recipe.for_module(&start, &FlexVar::keys(&config));
    let kept = recipe.skip_suffixes.clone();
    let weights = weights.filtered(|key| !kept.iter().any(|suffix| key.ends_with(suffix)));
    let options = LoadOptions { allow_missing: true, ..LoadOptions::default() };
    let (transformer, report) = burn_var::weights::load(start, &weights, &FlexVar::keys(&config), options)?;
    assert!(report.missing.iter().all(|key| key == "pos_1LC"), "{:?}", report.missing);
    Ok((tokenizer, transformer))
}

/// The schedule as it is written in the names of arrays: `1_2_4`.
fn name_of(sides: &[usize]) -> String {
    sides.iter().map(ToString::to_string).collect::<Vec<_>>().join("_")
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let (tokenizer, transformer) = models(case, device)?;
    positions(case, &transformer, checks);
    let conditions = case.conditions("labels", transformer.config().num_classes);
    for sides in case.get::<Vec<Vec<usize>>>("/config/tf_patch_nums") {
        let (scales, name) = (Scales::square(&sides)?, name_of(&sides));
        let input: Tensor<3> = case.tensor(&format!("tf_in_{name}"), device);
        let forward = |conditions: &[Condition]| transformer.teacher_forced(conditions, input.clone(), &scales, None);
        checks.floats(&format!("tf_logits_{name}"), "logits", forward(&conditions)?);
        let null = format!("tf_logits_uncond_{name}");
        if case.has(&null) {
            checks.floats(&null, "logits", forward(&vec![Condition::Null; conditions.len()])?);
        }
    }
    let (strength, side): (f64, usize) = (case.get("/config/cfg"), case.get("/config/max_pn"));
    for sides in case.get::<Vec<Vec<usize>>>("/config/inference_patch_nums") {
        let styles = [
            ("var", Schedule::RampWithin { strength, side, steps: Some(9) }),
            ("llamagen", Schedule::Constant(strength - 1.0)),
        ];
        for (style, schedule) in styles {
            let name = format!("greedy_{style}_{}", name_of(&sides));
            greedy(&name, &tokenizer, &transformer, (&conditions, Scales::square(&sides)?, schedule), checks)?;
        }
    }
    Ok(())
}

fn positions(case: &Case, transformer: &FlexVar, checks: &mut Checks<'_>) {
    let arrays: Vec<String> = case.names().filter(|name| name.starts_with("pos_")).map(str::to_owned).collect();
    for name in arrays {
        let shape = case.array(&name).shape;
        if name.starts_with("pos_table") {
            let side = transformer.config().positions;
            // At its own size the table is not resized.
            let table = transpose(transformer.positions(MapSize::square(side))).narrow(1, 0, shape[1]);
            checks.floats(&name, "positions", table.reshape([1, shape[1], side, side]));
        } else {
            let size = MapSize::square(shape[1].isqrt());
            checks.floats(&name, "positions", transformer.positions(size).narrow(2, 0, shape[2]));
        }
    }
}

fn greedy(
    name: &str,
    tokenizer: &FlexVae,
    transformer: &FlexVar,
    (conditions, scales, cfg): (&[Condition], Scales, Schedule),
    checks: &mut Checks<'_>,
) -> Result<()> {
    let mut logits = Vec::new();
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::new(cfg))];
    let request =
        BatchRequest { sampler: Sampler::greedy(), scales: Some(scales), ..BatchRequest::new(conditions.to_vec(), 0) };
    let generated = generate(tokenizer, transformer, guidance, request, &mut |done| {
        logits.push(done.logits.clone());
        ControlFlow::Continue(())
    })?;
    checks.floats(&format!("{name}_logits"), "logits", Tensor::cat(logits, 1));
    checks.ids(&format!("{name}_ids"), "ids", generated.tokens.sequence());
    checks.floats(&format!("{name}_img"), "image", tokenizer.decode_raw(generated.canvas));
    Ok(())
}
