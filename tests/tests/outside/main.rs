//! A crate outside `burn-var` that brings models, tokenizers and guidance of its own: toys whose images are known in
//! advance, through the public interface alone.
//!
//! Each module is one idea of the literature. Every generation here runs in all the ways that there are, see
//! [`support::everywhere`].

mod bits;
mod continuous;
mod guidance;
mod next_token;
mod replace;
mod support;
mod text;
