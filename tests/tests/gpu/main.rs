//! A GPU backend with fusion: defects of it that are known, kernels, and budgets of their launches. A software GPU will do.
//!
//! `cargo test -p burn-var-tests --no-default-features --features wgpu --test gpu`

mod budget;
mod draw;
mod fusion;
mod kernels;
mod settings;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lets tests run one after the other: launches are counted for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
