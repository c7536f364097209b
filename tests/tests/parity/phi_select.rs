//! The choice of the phi convolution for each scale, against `PhiPartiallyShared`.

use burn::tensor::Device;
use burn_var::Result;
use burn_var::models::var::phi_index;
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};

pub(super) fn read(case: &Case, _device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    for name in case.arrays_of_role("expected") {
        // `K4_SN10`: four convolutions, ten scales.
        let sizes = name.strip_prefix('K').and_then(|rest| rest.split_once("_SN"));
        let sizes = sizes.and_then(|(phis, scales)| Some((phis.parse().ok()?, scales.parse().ok()?)));
        match sizes {
            Some((phis, scales)) => {
                let values = (0..scales).map(|k| phi_index(phis, k, scales) as f64).collect();
                checks.array(&name, "ids", Array { shape: vec![scales], values });
            }
            None => checks.fail(format!("array `{name}` does not have the numbers of phis and scales as its name")),
        }
    }
    Ok(())
}
