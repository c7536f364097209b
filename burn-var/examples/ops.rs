//! Times the fused operations against the compositions of tensor operations that they replace, at the sizes of a small
//! VQ-VAE and a small VAR, on the default device: `cargo run --release -p burn-var --example ops`.

use std::time::Instant;

use burn::{
    module::Param,
    tensor::{
        DType, Device, Distribution, Tensor, activation,
        module::{self},
        ops::ConvOptions,
    },
};
use burn_var::ops::{self, ConvSpec};

fn main() {}
