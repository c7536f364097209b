//! Kinds of models.

use std::fmt;

use serde::{Serialize, Serializer};

/// A kind of model: its names, and the places where trainers' checkpoints keep it.
///
/// Displayed as its title, serialized as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Name in the metadata of files: `var`. Never changes, since files on disk have it.
    pub name: &'static str,
    /// Role in a generator, in lowercase, for flags and file names: `transformer`.
    pub role: &'static str,
    /// Name in messages: `VAR transformer`.
    pub title: &'static str,
    /// Advice on how to get such a file, for messages.
    pub source: &'static str,
    /// Prefixes under which trainers' checkpoints keep the model: paths through their nested dictionaries.
    pub sections: &'static [&'static str],
    /// Name of a tensor that tells this model from the others, for files without a configuration.
    pub landmark: Option<&'static str>,
}

impl Kind {
    /// Returns the title with its article: `a VAR transformer`.
    pub fn with_article(&self) -> String {
        let article = if self.title.starts_with(['A', 'E', 'I', 'O', 'a', 'e', 'i', 'o']) { "an" } else { "a" };
        format!("{article} {}", self.title)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}
