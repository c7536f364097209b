//! The network through which images are compared.

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var::models::classifier::Classifier;
use burn_var::models::dino::Vit;
use burn_var::models::inception::{Inception, InceptionInput};
use burn_var::weights::{Pretrained, StateDict};
use burn_var_train::eval::{ClassifierExtractor, FeatureExtractor, InceptionExtractor, VitExtractor};
use clap::ValueEnum;

use crate::output::usage;

/// The network through which images are compared.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// FID's Inception network, `pt_inception-2015-12-05-6726825d.pth`.
    #[arg(long, value_name = "FILE")]
    pub(super) inception: Option<PathBuf>,
    /// A classifier from `burn-var train classifier`; it also measures how often the requested class is recognized.
    #[arg(long, value_name = "FILE")]
    pub(super) classifier: Option<PathBuf>,
    /// A DINO vision transformer.
    #[arg(long, value_name = "FILE")]
    dino: Option<PathBuf>,
    /// The preprocessing for the Inception network.
    #[arg(long, value_enum, default_value_t, requires = "inception")]
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Protocol {
    /// The guided-diffusion evaluator, which the VAR papers use.
    #[default]
    GuidedDiffusion,
    /// The pytorch-fid evaluator.
    PytorchFid,
}

impl From<Protocol> for InceptionInput {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::GuidedDiffusion => Self::Tf1,
            Protocol::PytorchFid => Self::Torch,
        }
    }
}

impl NetworkArgs {
    /// Loads the network, if one is named.
    pub(super) fn load(&self, device: &Device) -> Result<Option<Box<dyn FeatureExtractor>>> {
        if let Some(file) = &self.inception {
            let network = Inception::load(&StateDict::open(file)?, device)?;
            return Ok(Some(Box::new(InceptionExtractor::new(network, self.protocol.into(), device)?)));
        }
        if let Some(file) = &self.classifier {
            let classifier = Classifier::load(&StateDict::open(file)?, device)?;
            return Ok(Some(Box::new(ClassifierExtractor::new(classifier, device)?)));
        }
        if let Some(file) = &self.dino {
            let dict = StateDict::open(file)?;
            let vit = Vit::load(&dict, device)?;
            return Ok(Some(Box::new(VitExtractor::new(vit, device)?)));
        }
        Ok(None)
    }

    /// Loads the network.
    pub(super) fn require(&self, device: &Device) -> Result<Box<dyn FeatureExtractor>> {
        self.load(device)?.ok_or_else(|| usage("name a network: --inception, --classifier or --dino"))
    }
}
