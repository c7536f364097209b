use std::path::PathBuf;

/// What can go wrong in this crate. Every message names the thing, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A file was read, and does not hold what it should.
    #[error("`{}` is not usable: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A tensor has another shape than the operation needs.
    #[error("`{name}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor or argument.
        name: String,
        /// The expected shape, in words or numbers.
        expected: String,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A configuration contradicts itself or lies outside what the method defines.
    #[error("`{name}` is {found}, expected {expected}")]
    Config {
        /// The field, as written in the configuration.
        name: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A class label that the model does not have.
    #[error("class label {label} is out of range: this model has {classes} classes, 0 to {}", classes - 1)]
    Label {
        /// The label asked for.
        label: usize,
        /// How many classes the model has.
        classes: usize,
    },
    /// Weights that do not fit the model: all that is missing, unused or mis-shaped at once.
    #[error("{0}")]
    Weights(Box<crate::pretrained::LoadReport>),
    /// The device refused an operation, or its result could not be read back.
    #[error("device failure while trying to {action}: {reason}")]
    Device {
        /// What was tried.
        action: &'static str,
        /// The device's word.
        reason: String,
    },
    /// A value that must be finite is not.
    #[error("{what} is not finite ({found}); {hint}")]
    NonFinite {
        /// Which value.
        what: String,
        /// What it was.
        found: f64,
        /// What to do.
        hint: &'static str,
    },
    /// The observer of a generation asked to stop.
    #[error("generation was cancelled after scale {scale}")]
    Cancelled {
        /// The zero-based scale after which it stopped.
        scale: usize,
    },
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// An [`Error::Format`].
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.into(), reason: reason.into() }
    }

    /// An [`Error::Shape`].
    pub fn shape(name: impl Into<String>, expected: impl Into<String>, found: impl Into<Vec<usize>>) -> Self {
        Error::Shape { name: name.into(), expected: expected.into(), found: found.into() }
    }

    /// An [`Error::Device`] for `map_err`.
    pub fn device<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Error::Device { action, reason: reason.to_string() }
    }

    /// An [`Error::Config`].
    pub fn config(name: impl Into<String>, found: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Error::Config { name: name.into(), found: found.to_string(), expected: expected.into() }
    }
}

/// Refuses sizes of 0.
///
/// # Errors
/// [`Error::Config`] naming the first.
pub(crate) fn require_positive(sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, size)) => Err(Error::config(*name, size, "at least 1")),
        None => Ok(()),
    }
}
