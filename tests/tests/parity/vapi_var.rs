//! A step of VA-pi on VAR, composed from the modules of VAR's code.

use burn::tensor::Device;
use burn_var::Result;
use burn_var::models::var::{Var, VarConfig, VqVaeConfig};
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::weightgen::{Override, WeightGen};
use serde_json::{Value, json};

use super::{va_pi, vqvae};

/// Reads the recipe of the tokenizer, whose fields begin with `weightgen_`.
pub(super) fn tokenizer_recipe(case: &Case) -> WeightGen {
    let gain = case.find("/config/vae/weightgen_gain").unwrap_or(1.0);
    let overrides: std::collections::BTreeMap<String, Override> =
        case.find("/config/vae/weightgen_overrides").unwrap_or_default();
    WeightGen { gain, overrides, ..WeightGen::default() }
}

/// Reads fields of the transformer that both families have, and those of the tokenizer.
pub(super) fn transformer_fields(case: &Case) -> Value {
    const FIELDS: [&str; 8] =
        ["depth", "embed_dim", "num_heads", "mlp_ratio", "norm_eps", "shared_aln", "attn_l2_norm", "num_classes"];
    let mut fields: Value = case.pick(&["/config"], &FIELDS);
    fields["vocab_size"] = case.get("/config/V");
    fields["z_channels"] = case.get("/config/Cvae");
    fields["patch_nums"] = case.get("/config/patch_nums");
    fields
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let mut sizes = json!(VqVaeConfig::public(case.get("/config/patch_nums")));
    let given: Value =
        case.pick(&["/config/vae"], &["ch", "ch_mult", "num_res_blocks", "z_channels", "share_quant_resi"]);
    for (name, value) in given.as_object().into_iter().flatten() {
        sizes[name] = value.clone();
    }
    sizes["image_channels"] = json!(case.array("image").shape[1]);
    sizes["vocab_size"] = case.get("/config/V");
    let tokenizer: VqVaeConfig = read_sizes(case, sizes);
    let tokenizer = vqvae::from_recipe(&tokenizer, &tokenizer_recipe(case), device)?;
    let config: VarConfig = read_sizes(case, transformer_fields(case));
    let recipe: WeightGen = case.get("/weightgen");
    let device_of_model = device.clone().autodiff();
    let weights = recipe.for_module(&config.init_zeros(&device_of_model)?, &Var::keys(&config));
    let model = Var::load_with(&weights, &config, LoadOptions::default(), &device_of_model)?;
    va_pi::next_scale(case, &tokenizer, &model, device, checks)
}

/// Reads sizes from the fields that a case has.
pub(super) fn read_sizes<T: serde::de::DeserializeOwned>(case: &Case, fields: Value) -> T {
    serde_json::from_value(fields).unwrap_or_else(|error| panic!("case `{}`: sizes: {error}", case.name()))
}
