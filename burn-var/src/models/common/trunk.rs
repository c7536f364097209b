//! Parts around the blocks that the transformers of VAR and FlexVAR share: initial weights, class embedding, checks of a
//! teacher-forced pass, and the parts of a checkpoint that tell their sizes.

use burn::nn::Embedding;
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::block::BlockSizes;
use crate::generation::Condition;
use crate::init::{Init, ParamInfo};
use crate::rng::Rng;
use crate::weights::shapes::{axes, count};
use crate::weights::{KeyMap, Kind, StateDict};
use crate::{Error, Result, Scales};

/// Width of a head in all published sizes.
const HEAD_WIDTH: usize = 64;

/// Constants of the authors' initialization.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VarInit {
    /// Factor of the adaptive norms' scales and shifts.
    pub aln: f64,
    /// Factor of the gates: 1e-3 for d16 and d20, down to 5e-6 for VAR-d36.
    pub alng: f64,
    /// Factor of the head's weights.
    pub head: f64,
}

impl Default for VarInit {
    fn default() -> Self {
        Self { aln: 0.5, alng: 1e-3, head: 0.02 }
    }
}

impl VarInit {
    /// Returns the initial values of a parameter.
    pub(crate) fn of(&self, sizes: &BlockSizes, param: &ParamInfo<'_>) -> Init {
        let width = sizes.width;
        let std = (1.0 / (3.0 * width as f64)).sqrt();
        let branch = std / (2.0 * sizes.depth as f64).sqrt();
        let packed = |std: f64| Init::NormalRuns(vec![(2 * width, std * self.alng), (4 * width, std * self.aln)]);
        match param.path {
            path if path.ends_with("scale_mul_1H11") => Init::Constant(4f64.ln()),
            path if path.ends_with("ada_gss") => packed((1.0 / width as f64).sqrt()),
            path if path.ends_with("bias") => Init::Keep,
            "head.weight" => Init::Normal(std * self.head),
            "head_nm.ada_lin.weight" => Init::Normal(std * self.aln),
            "shared_ada_lin.weight" => Init::Normal(std),
            path if path.ends_with("attn.proj.weight") || path.ends_with("ffn.fc2.weight") => Init::Normal(branch),
            path if path.ends_with("ada_lin.weight") => packed(std),
            _ => Init::Normal(std),
        }
    }
}

/// Embeds conditions by a table of `classes + 1` rows, the last for the null class: `[batch, width]`.
///
/// # Errors
/// [`Error::Shape`] without conditions; those of [`Condition::class_rows`].
pub(crate) fn embed_classes(table: &Embedding, conditions: &[Condition], classes: usize) -> Result<Tensor<2>> {
    if conditions.is_empty() {
        return Err(Error::shape("conditions", "at least one image", [0]));
    }
    let rows: Vec<i64> = Condition::class_rows(conditions, classes)?.into_iter().map(|row| row as i64).collect();
    let shape = [1, rows.len()];
    let rows = Tensor::<2, Int>::from_data(TensorData::new(rows, shape), &table.weight.val().device());
    Ok(table.forward(rows).squeeze_dim::<2>(0))
}

/// Checks the input of a teacher-forced pass, `[batch, L - first, z_channels]`, and its noise, one stream per image.
///
/// # Errors
/// [`Error::Shape`] if they do not fit batch and schedule.
pub(crate) fn check_teacher_input(
    batch: usize,
    scales: &Scales,
    input: &Tensor<3>,
    z_channels: usize,
    noise: Option<&[Rng]>,
) -> Result<()> {
    let expected = [batch, scales.tokens() - scales.size(0).area(), z_channels];
    if input.dims() != expected {
        return Err(Error::shape("teacher input", format!("{expected:?}"), input.dims()));
    }
    match noise {
        Some(noise) if noise.len() != batch => {
            Err(Error::shape("noise", format!("{batch} streams, one per image"), [noise.len()]))
        }
        _ => Ok(()),
    }
}

/// Returns the names of VAR, whose adaptive norms are the second part of a `Sequential`.
pub(crate) fn keys(kind: Kind, buffers: &'static [&'static str]) -> KeyMap {
    KeyMap::new(kind.title, buffers, |path| match path.rsplit_once("ada_lin.") {
        Some((before, after)) => format!("{before}ada_lin.1.{after}"),
        None => path.to_owned(),
    })
}

/// Sizes of a transformer that the shapes of its checkpoint determine.
pub(crate) struct TrunkShapes {
    pub(crate) depth: usize,
    pub(crate) embed_dim: usize,
    pub(crate) num_heads: usize,
    pub(crate) mlp_ratio: f64,
    pub(crate) shared_aln: bool,
    pub(crate) attn_l2_norm: bool,
    pub(crate) vocab_size: usize,
    pub(crate) z_channels: usize,
    pub(crate) num_classes: usize,
    /// Published value for the depth.
    pub(crate) drop_path_rate: f64,
}

impl TrunkShapes {
    /// Reads the sizes.
    ///
    /// # Errors
    /// [`Error::Format`] if this is no such transformer.
    pub(crate) fn of(dict: &StateDict, kind: Kind) -> Result<Self> {
        let [vocab_size, embed_dim] = axes(dict, "head.weight", kind)?;
        let [_, z_channels] = axes(dict, "word_embed.weight", kind)?;
        let [labels, _] = axes(dict, "class_emb.weight", kind)?;
        let [hidden, _] = axes(dict, "blocks.0.ffn.fc1.weight", kind)?;
        let depth = count(dict, |i| format!("blocks.{i}.attn.mat_qkv.weight"));
        let sharpness = "blocks.0.attn.scale_mul_1H11";
        let attn_l2_norm = dict.contains(sharpness);
        let num_heads = if attn_l2_norm {
            let [_, heads, _, _] = axes(dict, sharpness, kind)?;
            heads
        } else {
            embed_dim / HEAD_WIDTH
        };
        Ok(Self {
            depth,
            embed_dim,
            num_heads,
            mlp_ratio: hidden as f64 / embed_dim as f64,
            shared_aln: dict.contains("shared_ada_lin.1.weight"),
            attn_l2_norm,
            vocab_size,
            z_channels,
            num_classes: labels - 1,
            drop_path_rate: 0.1 * depth as f64 / 24.0,
        })
    }
}
