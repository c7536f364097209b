//! A step of VA-pi on FlexVAR, composed from the modules of FlexVAR's code.

use burn::tensor::Device;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::FlexVarConfig;
use burn_var::{Result, Scales};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;

use super::{sar, va_pi, vapi_var};

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let scales: Scales = case.get("/config/patch_nums");
    let public = VqModelConfig::vq16(case.get("/config/V"), case.get("/config/Cvae"));
    let vq = VqModelConfig {
        image_channels: case.array("image").shape[1],
        ch: case.get("/config/vae/ch"),
        z_channels: case.get("/config/vae/z_channels"),
        ch_mult: case.find("/config/vae/ch_mult").unwrap_or(public.ch_mult),
        num_res_blocks: case.find("/config/vae/num_res_blocks").unwrap_or(public.num_res_blocks),
        ..public
    };
    let tokenizer = sar::tokenizer_from(vq, &scales, &vapi_var::tokenizer_recipe(case), device)?;
    let config: FlexVarConfig = vapi_var::read_sizes(case, vapi_var::transformer_fields(case));
    let model = sar::transformer(&config, &case.get("/weightgen"), &device.clone().autodiff())?;
    va_pi::next_scale(case, &tokenizer, &model, device, checks)
}
