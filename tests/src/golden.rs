//! Golden cases: outputs of the original implementations on small inputs.
//!
//! A case is a folder with `case.json` (`kind` says which reader it needs; sizes, flags, tolerances) and
//! `io.safetensors` (inputs and expected outputs). [`Case::tolerance`] says which tolerance an array has.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::tensor::{Device, Int, Tensor};
use burn_var::Condition;
use burn_var::weights::StateDict;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The environment variable with the folder of cases to run instead of those in the repository.
pub const FOLDER_VARIABLE: &str = "BURN_VAR_GOLDEN";

/// Returns the folder of cases: `BURN_VAR_GOLDEN`, or the copies in the repository. A relative path starts at the
/// repository's root, where `cargo test` is called, not at this package, where it runs the tests.
pub fn folder() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) => package.parent().unwrap_or(package).join(folder),
        None => package.join("golden"),
    }
}

/// Returns true for the cases in the repository, which must all be read and compared in full.
pub fn is_default_folder() -> bool {
    std::env::var_os(FOLDER_VARIABLE).is_none()
}

/// Reads all cases of [`folder`], in order of name. Their arrays are read when asked for, so that a case of an unknown
/// kind needs a readable `case.json` only.
///
/// # Panics
/// If the folder cannot be read or holds no case, with a message for the tester.
pub fn cases() -> Vec<Case> {
    let folder = folder();
    let hint = format!("set {FOLDER_VARIABLE} to a folder whose sub-folders hold a `case.json` each, or unset it");
    let entries = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("the golden cases in `{}` cannot be read: {error}; {hint}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // A case's own folder is accepted too.
    paths.push(folder.clone());
    paths.retain(|path| path.join("case.json").is_file());
    paths.sort();
    assert!(!paths.is_empty(), "`{}` holds no golden case; {hint}", folder.display());
    paths.iter().map(|path| Case::open(path)).collect()
}

/// One case.
#[derive(Debug)]
pub struct Case {
    name: String,
    folder: PathBuf,
    json: Value,
    arrays: OnceLock<StateDict>,
}

/// The largest accepted difference from an expected number: `absolute + relative * |expected|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The absolute part.
    pub absolute: f64,
    /// The part relative to the expected number.
    pub relative: f64,
}

impl Tolerance {
    /// No difference at all.
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };

    /// Returns the largest accepted difference from `expected`.
    pub fn of(self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs()
    }
}

/// An array of a case, as f64, which holds every type of array in the cases exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The length of every axis.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub values: Vec<f64>,
}

impl Case {
    /// Reads the `case.json` of a folder.
    ///
    /// # Panics
    /// If the file is missing or is not JSON, naming it.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("case.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()));
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()));
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, folder: folder.into(), json, arrays: OnceLock::new() }
    }

    /// Creates a case that lies in no folder.
    #[cfg(test)]
    pub(crate) fn in_memory(name: &str, json: Value, arrays: Vec<(&'static str, Vec<f32>)>) -> Self {
        let shapes: Vec<_> = arrays.iter().map(|(name, values)| ((*name).to_owned(), vec![values.len()])).collect();
        let dict = StateDict::generated(name, shapes, move |key, _| {
            arrays.iter().find(|(name, _)| *name == key).expect("a name from the list").1.clone()
        });
        Self { name: name.into(), folder: PathBuf::new(), json, arrays: OnceLock::from(dict.expect("arrays")) }
    }

    /// The name of the folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind, which says which reader the case needs.
    ///
    /// # Panics
    /// If the case has none: it would be skipped silently.
    pub fn kind(&self) -> &str {
        let kind = self.json.get("kind").and_then(Value::as_str);
        kind.unwrap_or_else(|| panic!("case `{}` has no `kind` in its case.json", self.name))
    }

    /// Returns the path of a file of the case.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn arrays(&self) -> &StateDict {
        let open = || StateDict::open(self.file("io.safetensors")).unwrap_or_else(|error| panic!("{error}"));
        self.arrays.get_or_init(open)
    }

    /// Returns the value at a JSON pointer (`/config/depth`), or nothing if it is absent or null.
    ///
    /// # Panics
    /// If the value is of another type, naming case and pointer.
    pub fn find<T: DeserializeOwned>(&self, pointer: &str) -> Option<T> {
        let value = self.json.pointer(pointer).filter(|value| !value.is_null())?;
        let parsed = serde_json::from_value(value.clone());
        Some(parsed.unwrap_or_else(|error| panic!("case `{}`: `{pointer}`: {error}", self.name)))
    }

    /// Returns the value at a JSON pointer.
    ///
    /// # Panics
    /// If the value is absent, null or of another type, naming case and pointer.
    pub fn get<T: DeserializeOwned>(&self, pointer: &str) -> T {
        self.find(pointer).unwrap_or_else(|| panic!("case `{}` has no `{pointer}` in its case.json", self.name))
    }

    /// Reads a structure from the fields called `names` of the objects at `pointers`. The first object with a field
    /// decides its value.
    ///
    /// # Panics
    /// If the fields do not make up the structure, naming case and pointers.
    pub fn pick<T: DeserializeOwned>(&self, pointers: &[&str], names: &[&str]) -> T {
        let mut picked = Map::new();
        for pointer in pointers {
            for name in names {
                let value = self.json.pointer(&format!("{pointer}/{name}")).filter(|value| !value.is_null());
                if let Some(value) = value.filter(|_| !picked.contains_key(*name)) {
                    picked.insert((*name).to_owned(), value.clone());
                }
            }
        }
        serde_json::from_value(Value::Object(picked))
            .unwrap_or_else(|error| panic!("case `{}`, at {}: {error}", self.name, pointers.join(" and ")))
    }

    /// Returns the names of the arrays in a role: `input` or `expected`.
    pub fn arrays_of_role(&self, role: &str) -> Vec<String> {
        let arrays: Map<String, Value> = self.get("/arrays");
        arrays
            .into_iter()
            .filter(|(_, about)| about.get("role").and_then(Value::as_str) == Some(role))
            .map(|(name, _)| name)
            .collect()
    }

    /// Returns the names of all arrays.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays().keys()
    }

    /// Returns true if the case has the array `name`.
    pub fn has(&self, name: &str) -> bool {
        self.arrays().contains(name)
    }

    /// Returns the array `name` on the host.
    ///
    /// # Panics
    /// If the case has no such array, naming both.
    pub fn array(&self, name: &str) -> Array {
        let data = self.arrays().tensor(name).unwrap_or_else(|error| panic!("case `{}`: {error}", self.name));
        let shape = data.shape().to_vec();
        let values = data.try_into_vec_as().unwrap_or_else(|error| panic!("case `{}`: `{name}`: {error}", self.name));
        Array { shape, values }
    }

    /// Returns the conditions in the array of class labels `name`, one per image. The label `num_classes`, one past the
    /// last class, is the null condition, as in the class embedding of the original models. Larger labels are left to the
    /// model, which refuses them.
    ///
    /// # Panics
    /// If a label is not a whole number of 0 or more, naming the case.
    pub fn conditions(&self, name: &str, num_classes: usize) -> Vec<Condition> {
        let label = |value: f64| {
            assert!(value >= 0.0 && value.fract() == 0.0, "case `{}`: `{name}` has the label {value}", self.name);
            Condition::from(Some(value as usize).filter(|label| *label != num_classes))
        };
        self.array(name).values.into_iter().map(label).collect()
    }

    /// Returns a float array on a device.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name, D), device)
    }

    /// Returns an integer array on a device.
    pub fn ids<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        Tensor::from_data(self.data(name, D), device)
    }

    fn data(&self, name: &str, axes: usize) -> burn::tensor::TensorData {
        let data = self.arrays().tensor(name).unwrap_or_else(|error| panic!("case `{}`: {error}", self.name));
        assert_eq!(data.rank(), axes, "case `{}`: axes of `{name}`, which is {:?}", self.name, data.shape());
        data
    }

    /// Returns the tolerance of the array `name`, which belongs to `group`: that of the most specific entry.
    ///
    /// The key of an entry is a name or a pattern, in which `*` stands for any text, also none; `/` separates
    /// alternatives, each of which counts for itself. Of those that fit, the most specific is, in this order of reasons,
    ///
    /// 1. one that fits the array's own name, before one that fits the name of its group; the bare `*`, which fits
    ///    everything, comes last;
    /// 2. one without `*`, which is the name itself;
    /// 3. the one with the most characters other than `*`;
    /// 4. the one with the fewest `*`.
    ///
    /// # Panics
    /// If no entry fits, or if two that are equally specific differ, naming the case and the entries.
    pub fn tolerance(&self, name: &str, group: &str) -> Tolerance {
        let tolerances: Value = self.get("/tolerances");
        let found = match &tolerances {
            Value::Object(entries) => most_specific(entries, name, group)
                .unwrap_or_else(|problem| panic!("case `{}`, tolerance of `{name}`: {problem}", self.name)),
            value => Some(value),
        };
        let number = |value: &Value, field: &str| match value.get(field) {
            // `1e-3 * max|name|`
            Some(Value::String(text)) => {
                let parts = text.strip_suffix('|').and_then(|text| text.split_once(" * max|"));
                let factor = parts.and_then(|(factor, name)| Some((factor.parse::<f64>().ok()?, name)));
                let (factor, name) =
                    factor.unwrap_or_else(|| panic!("case `{}`: the tolerance `{text}` is not understood", self.name));
                factor * self.array(name).values.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()))
            }
            value => value.and_then(Value::as_f64).unwrap_or(0.0),
        };
        match found {
            Some(Value::String(word)) if word == "exact" => Tolerance::EXACT,
            Some(value @ Value::Object(_)) => {
                let largest = match value.get("of_largest") {
                    Some(_) => self.array(name).values.iter().fold(0.0_f64, |largest, x| largest.max(x.abs())),
                    None => 0.0,
                };
                let absolute = number(value, "atol") + number(value, "of_largest") * largest;
                Tolerance { absolute, relative: number(value, "rtol") }
            }
            Some(other) => panic!("case `{}`: the tolerance {other} of `{name}` is not understood", self.name),
            None => panic!("case `{}` has no tolerance for `{name}` or `{group}`", self.name),
        }
    }
}

/// Returns the entry for `name` in `group` by the rules of [`Case::tolerance`].
///
/// # Errors
/// Two entries are equally specific and differ.
fn most_specific<'a>(entries: &'a Map<String, Value>, name: &str, group: &str) -> Result<Option<&'a Value>, String> {
    let rank = |key: &str| key.split('/').filter_map(|pattern| specificity(pattern, name, group)).max();
    let ranked: Vec<_> = entries.iter().filter_map(|(key, value)| Some((rank(key)?, key, value))).collect();
    let Some(&(best, first, value)) = ranked.iter().max_by_key(|(rank, ..)| *rank) else { return Ok(None) };
    match ranked.iter().find(|(rank, _, other)| *rank == best && *other != value) {
        Some((_, second, _)) => Err(format!("the entries `{second}` and `{first}` fit equally well and differ")),
        None => Ok(Some(value)),
    }
}

/// Ranks a pattern for `name` in `group`: a larger rank is more specific. Returns nothing if the pattern fits neither.
fn specificity(pattern: &str, name: &str, group: &str) -> Option<(u8, bool, usize, Reverse<usize>)> {
    let fits = match pattern {
        "*" => 0,
        _ if matches(pattern, name) => 2,
        _ if matches(pattern, group) => 1,
        _ => return None,
    };
    let stars = pattern.matches('*').count();
    Some((fits, stars == 0, pattern.chars().count() - stars, Reverse(stars)))
}

/// Returns true if a name fits a pattern, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).filter(|&i| rest.is_char_boundary(i)).any(|i| matches(after, &rest[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patterns_match_as_globs() {
        let cases = [("ids_*", "ids_3", true), ("ids_*", "extra_ids_3", false), ("*.keep", "k5.keep", true)];
        for (pattern, name, expected) in cases.into_iter().chain([("f", "f_hat", false), ("a*c*e", "abcde", true)]) {
            assert_eq!(matches(pattern, name), expected, "`{name}` against `{pattern}`");
        }
    }

    #[test]
    fn the_most_specific_tolerance_wins() {
        // Keys, array, group, the key that decides. `*` sorts before every name, so it is always the first to fit.
        let table: [(&[&str], &str, &str, Option<&str>); 16] = [
            (&["*", "idx_1"], "idx_1", "ids", Some("idx_1")),
            (&["*", "dct_out_*"], "dct_out_3x2", "*", Some("dct_out_*")),
            (&["*", "*grad_norms"], "ce_grad_norms", "floats", Some("*grad_norms")),
            (&["*", "*_losses", "ste_*"], "ste_losses", "floats", Some("*_losses")),
            (&["*bits*", "*", "*image"], "cfg3_bits_2", "floats", Some("*bits*")),
            (&["logits_*", "logits_full_*", "*"], "logits_full_1", "logits", Some("logits_full_*")),
            (&["*", "grads"], "head.weight", "grads", Some("grads")),
            (&["*", "ids_*"], "extra_ids_0", "ids_0", Some("ids_*")),
            (&["logits", "logits_1*"], "logits_12", "logits", Some("logits_1*")),
            (&["image/f_hat", "*"], "cfg1.f_hat", "f_hat", Some("image/f_hat")),
            (&["a*/f_hat_2", "f_*"], "f_hat_2", "floats", Some("a*/f_hat_2")),
            (&["*a*b*", "abc*"], "abcd", "", Some("abc*")),
            (&["a*b", "a*b*"], "axb", "", Some("a*b")),
            (&["*", "ids"], "logits", "floats", Some("*")),
            (&["ids", "f"], "f_hat", "floats", None),
            (&[], "f_hat", "floats", None),
        ];
        for (keys, name, group, expected) in table {
            let entries: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), json!(key))).collect();
            let found = most_specific(&entries, name, group).expect("one winner");
            assert_eq!(found.and_then(Value::as_str), expected, "`{name}` in `{group}` with {keys:?}");
        }
    }

    #[test]
    fn a_tie_is_an_error_unless_both_agree() {
        let entries = |first: &str, second: &str| -> Map<String, Value> {
            [("a*".to_owned(), json!(first)), ("*b".to_owned(), json!(second))].into_iter().collect()
        };
        let message = most_specific(&entries("exact", "loose"), "ab", "").unwrap_err();
        assert!(message.contains("`*b`") && message.contains("`a*`"), "both are named: {message}");
        assert_eq!(most_specific(&entries("exact", "exact"), "ab", "").unwrap(), Some(&json!("exact")));
    }

    #[test]
    fn a_specific_tolerance_is_not_shadowed() {
        let json = json!({ "kind": "x", "tolerances": { "*": { "atol": 1.0 }, "idx_1": "exact" } });
        let case = Case::in_memory("shadow", json, vec![("idx_1", vec![1.0])]);
        assert_eq!(case.tolerance("idx_1", "ids"), Tolerance::EXACT);
        assert_eq!(case.tolerance("f_hat", "floats"), Tolerance { absolute: 1.0, relative: 0.0 });
    }

    #[test]
    fn the_label_after_the_last_class_is_the_null_condition() {
        let case = Case::in_memory("labels", json!({}), vec![("labels", vec![0.0, 3.0, 2.0, 4.0])]);
        // With 5 classes, row 5 is the null condition's, and 4 is a class: the label stayed what it is.
        let rows = Condition::class_rows(&case.conditions("labels", 3), 5).expect("classes");
        assert_eq!(rows, [0, 5, 2, 4]);
    }

    #[test]
    fn a_case_of_an_unknown_kind_needs_no_readable_arrays() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("case.json"), r#"{ "kind": "of another model" }"#).expect("written");
        assert_eq!(Case::open(folder.path()).kind(), "of another model");
    }
}
