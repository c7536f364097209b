//! LlamaGen: transformer, generation, filters and tokenizer, against `autoregressive/models` of its code.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{Device, Int, Tensor};
use burn_var::generation::TeacherInput;
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::llamagen::{LlamaGen, LlamaGenConfig, LlamaGenPreset, LlamaGenVq, LlamaGenVqConfig};
use burn_var::sampling::Sampler;
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{BatchRequest, Condition, MapSize, Result, Scales, TeacherForced, TokenPyramid, generate, ops};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;

/// Value of a logit that a filter removes.
const REMOVED: f32 = -1e30;

/// Reads the sizes of a transformer.
pub(super) fn config(case: &Case) -> Result<LlamaGenConfig> {
    let get = |name: &str| case.get::<usize>(&format!("/config/{name}"));
    let grid: MapSize = case.get("/config/grid");
    let (dim, multiple_of) = (get("dim"), case.find("/config/multiple_of").unwrap_or(256));
    let class_tokens: usize = case.find("/config/cls_token_num").unwrap_or(1);
    assert_eq!(class_tokens, 1, "case `{}`: tokens of a class", case.name());
    let public = LlamaGenConfig::new(dim, get("n_layer"), get("n_head"), Scales::raster(grid)?);
    let config = LlamaGenConfig {
        n_kv_head: case.find("/config/n_kv_head"),
        ffn_hidden: LlamaGenConfig::ffn_hidden(dim, multiple_of),
        norm_eps: case.find("/config/norm_eps").unwrap_or(public.norm_eps),
        rope_base: case.find("/config/rope_base").unwrap_or(public.rope_base),
        vocab_size: get("vocab_size"),
        num_classes: get("num_classes"),
        ..public
    };
    let expected = case.find("/config/ffn_hidden").unwrap_or(config.ffn_hidden);
    assert_eq!(config.ffn_hidden, expected, "case `{}`: hidden width", case.name());
    Ok(config)
}

/// Builds a transformer with weights from the recipe, through the loader of real checkpoints.
pub(super) fn from_recipe(case: &Case, device: &Device) -> Result<LlamaGen> {
    let (config, recipe) = (config(case)?, case.get::<WeightGen>("/weightgen"));
    let weights = recipe.for_module(&config.init_zeros(device)?, &LlamaGen::keys(&config));
    LlamaGen::load_with(&weights, &config, LoadOptions::default(), device)
}

/// Builds the tokenizer.
pub(super) fn tokenizer(case: &Case, grid: MapSize, device: &Device) -> Result<LlamaGenVq> {
    let public = VqModelConfig::vq16(case.get("/config/vq/codebook_size"), case.get("/config/vq/codebook_embed_dim"));
    let vq = VqModelConfig {
        ch: case.get("/config/vq/ch"),
        z_channels: case.get("/config/vq/z_channels"),
        ch_mult: case.get("/config/vq/ch_mult"),
        num_res_blocks: case.find("/config/vq/num_res_blocks").unwrap_or(public.num_res_blocks),
        codebook_l2_norm: case.find("/config/vq/codebook_l2_norm").unwrap_or(public.codebook_l2_norm),
        ..public
    };
    let config = LlamaGenVqConfig { vq, patch_nums: Scales::raster(grid)? };
    let gain = case.find("/config/vq/weightgen_gain").unwrap_or(1.0);
    let plain = WeightGen { gain, ..WeightGen::default() };
    let recipe: WeightGen = case.find("/config/vq/weightgen").unwrap_or(plain);
    let weights = recipe.for_module(&config.init_zeros(device)?, &LlamaGenVq::keys(&config));
    LlamaGenVq::load_with(&weights, &config, LoadOptions::default(), device)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let transformer = from_recipe(case, device)?;
    let config = transformer.config().clone();
    let grid = config.patch_nums.finest();
    let tokenizer = tokenizer(case, grid, device)?;
    let table = transformer.positions(grid).reshape([1 + grid.area(), config.head_dim() / 2, 2]);
    checks.floats("freqs_cis", "positions", table);

    let conditions = case.conditions("labels", config.num_classes);
    let ids: Tensor<2, Int> = case.ids("ids", device);
    let tokens = TokenPyramid::from_sequence(config.patch_nums.clone(), ids.clone())?;
    let input = TeacherInput::of(&tokenizer, &tokens);
    let forward =
        |conditions: &[Condition]| transformer.teacher_forced(conditions, input.clone(), &config.patch_nums, None);
    checks.floats("tf_logits", "logits", forward(&conditions)?);
    checks.floats("tf_logits_null", "logits", forward(&vec![Condition::Null; conditions.len()])?);
    gradients(case, &conditions, &input, device, checks)?;

    let mut canvas = tokenizer.map_of(ids, grid)?;
    let runs: Vec<String> = case.names().filter(|name| name.starts_with("greedy_")).map(str::to_owned).collect();
    for name in runs.iter().filter_map(|name| name.strip_suffix("_ids")) {
        canvas = greedy(case, name, &tokenizer, &transformer, &conditions, checks)?;
    }
    checks.floats("decode", "image", tokenizer.decode_raw(canvas));
    let latent = tokenizer.latent(case.tensor("image", device))?;
    let found = tokenizer.vq.quantize.quantize(latent);
    checks.ids("vq_ids", "ids", found.clone());
    checks.floats("vq_quant", "floats", tokenizer.map_of(found, grid)?);
    filters(case, checks)
}

/// Compares the cross-entropy and its gradients.
fn gradients(
    case: &Case,
    conditions: &[Condition],
    input: &TeacherInput,
    device: &Device,
    checks: &mut Checks<'_>,
) -> Result<()> {
    let transformer = from_recipe(case, &device.clone().autodiff())?;
    let scales = &transformer.config().patch_nums;
    let input = input.clone().on_graph();
    let logits = transformer.teacher_forced(conditions, input, scales, None)?;
    let loss = ops::cross_entropy(logits, case.ids("ids", device), 0.0).mean();
    checks.floats("tf_ce", "losses", loss.clone().inner());
    let gradients = Gradients::of(&transformer, &loss.backward(), &LlamaGen::keys(transformer.config()));
    let tolerance = case.tolerance("ce_grad_norms", "grad_norms");
    for (key, expected) in case.get::<BTreeMap<String, f64>>("/ce_grad_norms") {
        match gradients.get(&key) {
            Some(Some(gradient)) => checks.scalar(&format!("gradient of {key}"), expected, norm(gradient), tolerance),
            _ => checks.fail(format!("no gradient of {key}")),
        }
    }
    Ok(())
}

/// Returns the Euclidean norm.
pub(super) fn norm(array: &Array) -> f64 {
    array.values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Returns the number after a word in the description of an array.
pub(super) fn number_after(case: &Case, array: &str, word: &str) -> Option<f64> {
    let what: String = case.find(&format!("/arrays/{array}/what"))?;
    let (_, rest) = what.split_once(word)?;
    rest.trim_start().split([',', ' ']).next()?.parse().ok()
}

/// Compares a greedy run and returns its canvas.
fn greedy(
    case: &Case,
    name: &str,
    tokenizer: &LlamaGenVq,
    transformer: &LlamaGen,
    conditions: &[Condition],
    checks: &mut Checks<'_>,
) -> Result<Tensor<4>> {
    let number = |word: &str| number_after(case, &format!("{name}_ids"), word);
    let scale = number("cfg_scale").or_else(|| name.strip_prefix("greedy_cfg")?.parse().ok());
    let scale = scale.unwrap_or_else(|| panic!("case `{}`: guidance of `{name}`", case.name()));
    let interval = number("cfg_interval").map_or_else(|| case.get("/config/cfg_interval"), |interval| interval as i64);
    let strength = if scale > 1.0 { scale - 1.0 } else { 0.0 };
    let cfg = match usize::try_from(interval) {
        Ok(interval) => Schedule::First { strength, scales: interval + 2 },
        Err(_) => Schedule::Constant(strength),
    };
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::new(cfg))];
    let request = BatchRequest { sampler: Sampler::greedy(), ..BatchRequest::new(conditions.to_vec(), 0) };
    let mut logits = Vec::new();
    let generated = generate(tokenizer, transformer, guidance, request, &mut |done| {
        logits.push(done.logits.clone());
        ControlFlow::Continue(())
    })?;
    checks.floats(&format!("{name}_logits"), "logits", Tensor::cat(logits, 1));
    checks.ids(&format!("{name}_ids"), "ids", generated.tokens.sequence());
    Ok(generated.canvas)
}

/// Compares the filters, whose names say their settings: `filter_k5_p0.7`.
fn filters(case: &Case, checks: &mut Checks<'_>) -> Result<()> {
    let names: Vec<String> = case.names().filter(|name| name.starts_with("filter_k")).map(str::to_owned).collect();
    for name in names {
        let settings = name.strip_prefix("filter_k").and_then(|rest| rest.split_once("_p"));
        let settings = settings.and_then(|(top_k, top_p)| Some((top_k.parse().ok()?, top_p.parse().ok()?)));
        let Some((top_k, top_p)) = settings else {
            checks.fail(format!("the settings of `{name}` are not understood"));
            continue;
        };
        let sampler = Sampler { top_k, top_p, ..LlamaGenPreset::sampler() };
        let Array { shape, values } = case.array("filter_in");
        let vocab = shape.last().copied().unwrap_or(1);
        let mut found = Vec::with_capacity(values.len());
        for row in values.chunks(vocab) {
            let mut row: Vec<f32> = row.iter().map(|logit| *logit as f32).collect();
            sampler.filter(&mut row)?;
            found.extend(row.iter().map(|logit| f64::from(if logit.is_finite() { *logit } else { REMOVED })));
        }
        checks.array(&name, "filters", Array { shape, values: found });
    }
    Ok(())
}
