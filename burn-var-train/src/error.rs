use std::path::PathBuf;

/// What can go wrong in this crate. Every message names the thing, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The models refused something.
    #[error(transparent)]
    Model(#[from] burn_var::Error),
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
    /// Features or statistics of different networks would have been combined.
    #[error("features of different networks cannot be combined: {reason}")]
    Network {
        /// Both networks, and what to do.
        reason: String,
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

    /// An [`Error::Config`].
    pub fn config(name: impl Into<String>, found: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Error::Config { name: name.into(), found: found.to_string(), expected: expected.into() }
    }
}
