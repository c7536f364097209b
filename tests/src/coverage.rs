//! The kinds of golden cases that were found, beside the kinds that have a reader.

use std::collections::BTreeMap;
use std::fmt;

use crate::golden::Case;

/// The cases of a folder by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// The names of the cases of each kind that has a reader.
    covered: BTreeMap<String, Vec<String>>,
    /// The names of the cases of each kind without a reader, those of models that are not built yet.
    not_covered: BTreeMap<String, Vec<String>>,
    /// The kinds that have a reader and no case.
    without_case: Vec<String>,
}

impl Coverage {
    /// Sorts `cases` into kinds; `readers` are the kinds that have a reader.
    pub fn new(cases: &[Case], readers: &[&str]) -> Self {
        let (mut covered, mut not_covered) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for case in cases {
            let kinds = if readers.contains(&case.kind()) { &mut covered } else { &mut not_covered };
            kinds.entry(case.kind().to_owned()).or_default().push(case.name().to_owned());
        }
        let without_case = readers.iter().filter(|kind| !covered.contains_key(**kind));
        Self { without_case: without_case.map(|kind| (*kind).to_owned()).collect(), covered, not_covered }
    }

    /// Fails if no case can be compared. With `complete`, as for the cases in the repository, fails also if a reader has
    /// no case or a kind has no reader.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn check(&self, complete: bool) -> Result<(), String> {
        if self.covered.is_empty() {
            return Err("no case is of a kind that has a reader: nothing was compared".into());
        }
        if complete && !self.without_case.is_empty() {
            return Err(format!("kinds that have a reader and no case: {}", self.without_case.join(", ")));
        }
        if complete && !self.not_covered.is_empty() {
            let kinds: Vec<&str> = self.not_covered.keys().map(String::as_str).collect();
            return Err(format!("kinds that have cases and no reader: {}", kinds.join(", ")));
        }
        Ok(())
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, cases) in &self.covered {
            writeln!(f, "  {kind}: {}", cases.join(", "))?;
        }
        for (kind, cases) in &self.not_covered {
            writeln!(f, "  {kind}: not covered (no reader for this kind): {}", cases.join(", "))?;
        }
        for kind in &self.without_case {
            writeln!(f, "  {kind}: NO CASE, nothing was compared")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn coverage(kinds: &[&str]) -> Coverage {
        let case = |kind: &&str| Case::in_memory(&format!("{kind}_1"), json!({ "kind": kind }), vec![("x", vec![0.0])]);
        Coverage::new(&kinds.iter().map(case).collect::<Vec<_>>(), &["var", "vqvae"])
    }

    #[test]
    fn nothing_passes_silently() {
        // Kinds in the folder, the problem in a folder of someone else's, the problem in the repository.
        let table: [(&[&str], Option<&str>, Option<&str>); 5] = [
            (&["var", "vqvae", "var"], None, None),
            (&["var"], None, Some("no case: vqvae")),
            (&["var", "vqvae", "infinity"], None, Some("no reader: infinity")),
            (&["infinity", "hart"], Some("nothing was compared"), Some("nothing was compared")),
            (&[], Some("nothing was compared"), Some("nothing was compared")),
        ];
        for (kinds, partial, complete) in table {
            for (found, expected) in [(coverage(kinds).check(false), partial), (coverage(kinds).check(true), complete)]
            {
                match expected {
                    None => assert_eq!(found, Ok(()), "{kinds:?}"),
                    Some(expected) => assert!(found.clone().unwrap_err().contains(expected), "{kinds:?}: {found:?}"),
                }
            }
        }
    }

    #[test]
    fn the_report_names_every_kind() {
        let report = coverage(&["var", "infinity"]).to_string();
        assert!(report.contains("  var: var_1\n"), "{report}");
        assert!(report.contains("  infinity: not covered (no reader for this kind): infinity_1\n"), "{report}");
        assert!(report.contains("  vqvae: NO CASE"), "{report}");
    }
}
