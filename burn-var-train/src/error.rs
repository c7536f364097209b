use std::path::PathBuf;

/// An error of this crate. Every message names the thing, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the models. A loss or gradient that is not finite is [`burn_var::Error::NonFinite`].
    #[error(transparent)]
    Model(#[from] burn_var::Error),
    /// A file or folder could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// Action that failed: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file was read, and does not hold what it should.
    #[error("`{}` is not usable: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Description of the defect, and what to do.
        reason: String,
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
    /// Features or statistics of different networks would have been combined.
    #[error("features of different networks cannot be combined: {reason}")]
    Network {
        /// Both networks, and what to do.
        reason: String,
    },
    /// Shards of images are not one run.
    #[error("the shards cannot be put together: {reason}")]
    Shards {
        /// Description of the defect, and what to do.
        reason: String,
    },
    /// Another process trains in the folder.
    #[error("`{}` is in use: another process trains in it; wait until it ends, or choose another folder", folder.display())]
    Locked {
        /// The folder that is locked.
        folder: PathBuf,
    },
    /// A run is resumed with other settings than it was started with.
    #[error("`{}`: this run was started with other settings: {}. Set them back to resume it, or use a new folder", path.display(), differences.join("; "))]
    ConfigChanged {
        /// The configuration that the run was started with.
        path: PathBuf,
        /// One sentence per key that differs.
        differences: Vec<String>,
    },
    /// A run is resumed with other training data than it was started with.
    #[error("`{}` was made with other images or tokens than are there now; put those back, or train in a new folder", checkpoint.display())]
    DataChanged {
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// An image of a data set cannot be decoded.
    #[error("`{}` is broken: {reason}. Replace it by a sound copy and run the same command again; a new training run leaves broken images out with `data.options.check = true`", path.display())]
    BrokenImage {
        /// The file.
        path: PathBuf,
        /// Description of the defect.
        reason: String,
    },
    /// The ranks of a run do not find one another, or do not fit.
    #[error("the ranks of this run cannot work together: {reason}")]
    Ranks {
        /// Description of the failure.
        reason: String,
    },
    /// A rank of a run has stopped, and so the others stop.
    #[error("rank {rank} {reason}. Start all ranks again: the run resumes from its last checkpoint")]
    Rank {
        /// Number of the rank that is the cause.
        rank: usize,
        /// Description of why it stopped, or of what does not fit.
        reason: String,
    },
    /// The discriminator recognizes every image of every scale: the generator learns nothing from it any more.
    #[error(
        "training has collapsed: the discriminator recognizes every image of every scale (accuracies on real {real:?}, on generated {fake:?}, adversarial loss {adversarial:.3}) in {streak} measured steps in a row; lower discriminator.learning_rate, or raise discriminator.r1_gamma"
    )]
    Collapse {
        /// The step, from 0.
        step: u64,
        /// Measured steps in a row.
        streak: u32,
        /// Share of real images that the discriminator recognizes, per scale.
        real: Vec<f64>,
        /// Share of generated images that it recognizes, per scale.
        fake: Vec<f64>,
        /// The generator's adversarial loss.
        adversarial: f64,
    },
    /// A loss does not depend on what it should train.
    #[error("no gradient reaches {of}: encoder and discriminator must let gradients pass")]
    NoGradient {
        /// Name of what should have a gradient.
        of: &'static str,
    },
    /// The thread that loads images ended without an error.
    #[error("the thread that loads images of `{}` has ended unexpectedly; run the same command again to resume", path.display())]
    LoaderEnded {
        /// The folder of the images.
        path: PathBuf,
    },
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns a function that makes an [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// Creates an [`Error::Format`].
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.into(), reason: reason.into() }
    }

    /// Creates an [`Error::Ranks`].
    pub fn ranks(reason: impl Into<String>) -> Self {
        Error::Ranks { reason: reason.into() }
    }

    /// Creates an [`Error::Rank`].
    pub fn rank(rank: usize, reason: impl Into<String>) -> Self {
        Error::Rank { rank, reason: reason.into() }
    }

    /// Creates an [`Error::Config`].
    pub fn config(name: impl Into<String>, found: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Error::Config { name: name.into(), found: found.to_string(), expected: expected.into() }
    }

    /// Puts the name of a section before the key of an [`Error::Config`].
    pub(crate) fn in_section(self, section: &str) -> Self {
        match self {
            Error::Config { name, found, expected } => {
                Error::Config { name: format!("{section}.{name}"), found, expected }
            }
            other => other,
        }
    }
}
