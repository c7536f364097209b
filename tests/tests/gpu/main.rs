//! A GPU backend with fusion: defects of it that are known, and budgets of kernel launches. A software GPU will do.
//!
//! `cargo test -p burn-var-tests --no-default-features --features wgpu --test gpu`

mod budget;
mod fusion;
mod kernels;
