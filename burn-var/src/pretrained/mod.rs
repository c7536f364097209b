//! Public checkpoints to modules.

/// What a checkpoint and a model disagree on.
#[derive(Debug)]
pub struct LoadReport {}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
