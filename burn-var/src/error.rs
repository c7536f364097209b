use std::path::PathBuf;

/// The error type of this crate. Every message names the thing, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// Action that failed: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file was read, but its content is not usable.
    #[error("`{}` is not usable: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Description of the defect, and what to do.
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
        /// Value of the field.
        found: String,
        /// Accepted values.
        expected: String,
    },
    /// A class label that the model does not have.
    #[error("class label {label} is out of range: {}", class_range(*classes))]
    Label {
        /// The label asked for.
        label: usize,
        /// Number of classes of the model.
        classes: usize,
    },
    /// A name or number that is not a class of the model.
    #[error("{0}")]
    Class(String),
    /// Weights that do not fit the model, with all that is missing, unused or mis-shaped.
    #[error("{0}")]
    Weights(Box<crate::weights::LoadReport>),
    /// The device refused an operation, or its result could not be read back.
    #[error("device failure while trying to {action}: {reason}")]
    Device {
        /// Action that failed.
        action: &'static str,
        /// Error of the device.
        reason: String,
    },
    /// A covariance matrix that is not symmetric and positive semidefinite.
    #[error("the covariance is not valid: {0}; compute the statistics again")]
    Covariance(String),
    /// Class probabilities that are not a distribution.
    #[error("row {row} of the class probabilities is not a distribution: expected numbers from 0 to 1 with the sum 1")]
    Distribution {
        /// Index of the row.
        row: usize,
    },
    /// A value that must be finite is not.
    #[error("{what} is not finite ({found}); {hint}")]
    NonFinite {
        /// Name of the value.
        what: String,
        /// The value found.
        found: f64,
        /// Advice.
        hint: &'static str,
    },
    /// A generation was stopped before its last scale.
    #[error("generation was cancelled after {scales} scales")]
    Cancelled {
        /// Number of scales that were finished.
        scales: usize,
    },
    /// A request that this model, device or build cannot serve.
    #[error("{what} is not supported: {hint}")]
    Unsupported {
        /// The request.
        what: String,
        /// The reason, and what to do instead.
        hint: String,
    },
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an [`Error::Io`] for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// Creates an [`Error::Format`].
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.into(), reason: reason.into() }
    }

    /// Creates an [`Error::Shape`].
    pub fn shape(name: impl Into<String>, expected: impl Into<String>, found: impl Into<Vec<usize>>) -> Self {
        Error::Shape { name: name.into(), expected: expected.into(), found: found.into() }
    }

    /// Creates an [`Error::Device`] for `map_err`.
    pub fn device<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Error::Device { action, reason: reason.to_string() }
    }

    /// Creates an [`Error::Class`].
    #[cfg(feature = "image")]
    pub(crate) fn class(message: impl Into<String>) -> Self {
        Error::Class(message.into())
    }

    /// Creates an [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into(), hint: hint.into() }
    }

    /// Creates an [`Error::Config`].
    pub fn config(name: impl Into<String>, found: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Error::Config { name: name.into(), found: found.to_string(), expected: expected.into() }
    }
}

/// Describes the labels of a model.
fn class_range(classes: usize) -> String {
    match classes.checked_sub(1) {
        Some(last) => format!("this model has {classes} classes, 0 to {last}"),
        None => "this model has no classes".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_for_a_model_without_classes_is_an_error_with_a_message() {
        let message = |classes| Error::Label { label: 3, classes }.to_string();
        assert!(message(3).contains("3 classes, 0 to 2"), "{}", message(3));
        assert!(message(0).contains("no classes"), "{}", message(0));
    }
}
