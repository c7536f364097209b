//! Comparison of a checkpoint with a model.

use std::fmt;
use std::path::PathBuf;

/// Number of names per group that a message shows.
const SHOWN: usize = 20;

/// A tensor whose shape is not the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MisShaped {
    /// Name in the checkpoint.
    pub key: String,
    /// Shape that the model needs, in the checkpoint's layout.
    pub expected: Vec<usize>,
    /// Shape in the checkpoint.
    pub found: Vec<usize>,
}

/// Agreement and differences of a checkpoint and a model. All names are the checkpoint's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Source of the tensors.
    pub origin: PathBuf,
    /// Format that the names were read as.
    pub format: &'static str,
    /// Tensors that go into the model.
    pub loaded: Vec<String>,
    /// Parameters of the model without a tensor in the checkpoint.
    pub missing: Vec<String>,
    /// Tensors of the checkpoint that are not part of the model.
    pub unused: Vec<String>,
    /// Tensors with another shape than the model's.
    pub mis_shaped: Vec<MisShaped>,
    /// Tensors that are ignored on purpose: buffers that the model computes itself.
    pub ignored: Vec<String>,
}

impl LoadReport {
    /// Returns true if every parameter has its tensor and every tensor its parameter.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.mis_shaped.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin.display();
        if self.is_complete() {
            return write!(f, "`{origin}` ({}) fits the model: {} tensors", self.format, self.loaded.len());
        }
        write!(f, "`{origin}` does not fit the model as {}; {} tensors fit", self.format, self.loaded.len())?;
        group(f, "missing from the file", self.missing.iter())?;
        group(f, "not part of the model", self.unused.iter())?;
        let shapes =
            self.mis_shaped.iter().map(|m| format!("{}: expected {:?}, found {:?}", m.key, m.expected, m.found));
        group(f, "of another shape", shapes)?;
        let advice = if self.loaded.is_empty() {
            "no name fits: this looks like the checkpoint of another model"
        } else if !self.mis_shaped.is_empty() {
            "use the configuration that this checkpoint was trained with"
        } else {
            "use the checkpoint of exactly this model, or allow a partial load explicitly"
        };
        write!(f, "\n{advice}")
    }
}

fn group(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    names: impl ExactSizeIterator<Item = impl fmt::Display>,
) -> fmt::Result {
    let count = names.len();
    if count == 0 {
        return Ok(());
    }
    write!(f, "\n{count} {title}:")?;
    for name in names.take(SHOWN) {
        write!(f, "\n  {name}")?;
    }
    if count > SHOWN {
        write!(f, "\n  ... and {} more", count - SHOWN)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_groups_counts_and_caps() {
        let report = LoadReport {
            origin: "x.pth".into(),
            format: "VAR transformer",
            loaded: vec!["a".into()],
            missing: (0..25).map(|i| format!("m{i}")).collect(),
            mis_shaped: vec![MisShaped { key: "s".into(), expected: vec![2], found: vec![3, 1] }],
            ..Default::default()
        };
        let text = report.to_string();
        for part in [
            "`x.pth`",
            "25 missing",
            "\n  m19\n  ... and 5 more",
            "1 of another shape",
            "s: expected [2], found [3, 1]",
        ] {
            assert!(text.contains(part), "`{part}` in: {text}");
        }
        assert!(!text.contains("m20") && !text.contains("not part of"), "capped, no empty group: {text}");
    }
}
