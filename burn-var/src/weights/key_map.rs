//! Names of a module's parameters in a checkpoint format.

/// The names that one checkpoint format gives to the parameters of a module.
///
/// Fields of this crate's modules are named as in the checkpoints, so a map only holds the differences.
pub struct KeyMap {
    pub(super) format: &'static str,
    rename: Box<dyn Fn(&str) -> String + Send + Sync>,
    split: fn(&str) -> Option<Vec<String>>,
    buffers: &'static [&'static str],
}

impl KeyMap {
    /// Creates a map that turns a module's path (`blocks.0.ada_lin.weight`) into the format's name (`blocks.0.ada_lin.1.weight`).
    ///
    /// `format` is the name of the format in messages. `buffers` are suffixes of names of tensors that a model computes
    /// itself: each of them may be missing, unused or of another shape.
    pub fn new(
        format: &'static str,
        buffers: &'static [&'static str],
        rename: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { format, rename: Box::new(rename), split: |_| None, buffers }
    }

    /// Adds parameters that the format keeps in several tensors: `split` returns the names of the parts, which are
    /// equal shares of the parameter's first axis, in order. `None` for a parameter that is one tensor.
    #[must_use]
    pub fn with_split(self, split: fn(&str) -> Option<Vec<String>>) -> Self {
        Self { split, ..self }
    }

    /// Creates a map for checkpoints whose names are the module's paths.
    pub fn identity(format: &'static str) -> Self {
        Self::new(format, &[], str::to_owned)
    }

    /// Returns the checkpoint's name of a parameter of the module.
    pub fn key(&self, path: &str) -> String {
        (self.rename)(path)
    }

    /// Returns the checkpoint's names of the tensors that make up a parameter of the module: usually one.
    pub fn parts(&self, path: &str) -> Vec<String> {
        let key = self.key(path);
        (self.split)(&key).unwrap_or_else(|| vec![key])
    }

    /// Returns true if a tensor of a checkpoint is a buffer.
    pub fn is_buffer(&self, key: &str) -> bool {
        self.buffers.iter().any(|end| key.ends_with(end))
    }
}

impl std::fmt::Debug for KeyMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyMap").field("format", &self.format).field("buffers", &self.buffers).finish_non_exhaustive()
    }
}
