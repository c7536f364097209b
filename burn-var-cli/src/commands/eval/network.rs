//! The network through which pictures are compared.

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var::encoder::InceptionInput;
use burn_var::pretrained::{StateDict, load_classifier, load_inception, load_vit, vit_config};
use burn_var_train::eval::{ClassifierFeatures, FeatureSource, InceptionFeatures, VitFeatures};
use clap::ValueEnum;

/// The network through which pictures are compared.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// FID's Inception network, `pt_inception-2015-12-05-6726825d.pth`.
    #[arg(long, value_name = "FILE")]
    pub(super) inception: Option<PathBuf>,
    /// A classifier from `burn-var train classifier`: says too whether the class is recognised.
    #[arg(long, value_name = "FILE")]
    pub(super) classifier: Option<PathBuf>,
    /// A DINO vision transformer.
    #[arg(long, value_name = "FILE")]
    dino: Option<PathBuf>,
    /// How pictures enter the Inception network.
    #[arg(long, value_enum, default_value_t, requires = "inception")]
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Protocol {
    /// That of the guided-diffusion evaluator, which the VAR papers use.
    #[default]
    GuidedDiffusion,
    /// That of pytorch-fid.
    PytorchFid,
}

impl NetworkArgs {
    /// The network that was named, if any.
    pub(super) fn load(&self, device: &Device) -> Result<Option<Box<dyn FeatureSource>>> {
        Ok(match (&self.inception, &self.classifier, &self.dino) {
            (Some(file), _, _) => {
                let input = match self.protocol {
                    Protocol::GuidedDiffusion => InceptionInput::Tf1,
                    Protocol::PytorchFid => InceptionInput::Torch,
                };
                Some(Box::new(InceptionFeatures::new(load_inception(&StateDict::open(file)?, device)?, input, device)?))
            }
            (None, Some(file), _) => {
                Some(Box::new(ClassifierFeatures::new(load_classifier(&StateDict::open(file)?, device)?, device)?))
            }
            (None, None, Some(file)) => {
                let dict = StateDict::open(file)?;
                Some(Box::new(VitFeatures::new(load_vit(&dict, &vit_config(&dict)?, device)?, device)?))
            }
            (None, None, None) => None,
        })
    }
}
