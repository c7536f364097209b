//! The names that an application needs: `use burn_var::prelude::*;`.

pub use burn::tensor::{Device, Tensor};

pub use crate::editing::KnownTokens;
pub use crate::generation::{
    BatchRequest, Condition, NextScale, ScaleInput, ScaleTokens, State, TeacherForced, TeacherInput, Tokenizer,
    Vocabulary,
};
pub use crate::guidance::{BatchInfo, Branches, Guidance, Logits, Schedule};
#[cfg(feature = "image")]
pub use crate::pipeline::{ModelPair, Pipeline, Request, Settings};
pub use crate::scales::{MapSize, ScaleAt, Scales};
pub use crate::tokens::TokenPyramid;
pub use crate::weights::Pretrained;
