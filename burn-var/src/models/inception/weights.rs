//! The weights file of FID's Inception, `pt_inception-2015-12-05-6726825d.pth`.

use burn::tensor::Device;

use super::Inception;
use crate::weights::shapes::axes;
use crate::weights::{KeyMap, Kind, Pretrained, StateDict};
use crate::{Result, Scales};

const FIRST: &str = "Conv2d_1a_3x3.conv.weight";

impl Pretrained for Inception {
    const KIND: Kind = Kind {
        name: "inception",
        role: "inception",
        title: "Inception v3 of FID",
        source: "it is published with pytorch-fid as `pt_inception-2015-12-05-6726825d.pth`",
        sections: &[],
        landmark: Some(FIRST),
    };

    /// All sizes are fixed.
    type Config = ();

    fn config(&self) -> &() {
        &()
    }

    /// Returns the names of the module, which are those of pytorch-fid's file.
    fn keys(_: &()) -> KeyMap {
        KeyMap::new(Self::KIND.title, &["num_batches_tracked"], str::to_owned)
    }

    fn init_zeros(_: &(), device: &Device) -> Result<Self> {
        Ok(Inception::init_zeros(device))
    }

    fn infer(dict: &StateDict, _: Option<&Scales>) -> Result<()> {
        axes::<4>(dict, FIRST, Self::KIND)?;
        Ok(())
    }
}
