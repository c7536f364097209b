//! Golden cases: outputs of the original implementations on small inputs.
//!
//! A case is a folder with `case.json` (`kind` says which reader it needs; sizes, flags, tolerances) and
//! `io.safetensors` (inputs and expected outputs).

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};
use burn_var::weights::StateDict;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Names the folder of cases to run instead of those in the repository.
pub const FOLDER_VARIABLE: &str = "BURN_VAR_GOLDEN";

/// The folder of cases: `BURN_VAR_GOLDEN`, or the copies in the repository. A relative path starts at the repository's
/// root, where `cargo test` is called, not at this package, where it runs the tests.
pub fn folder() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) => package.parent().unwrap_or(package).join(folder),
        None => package.join("golden"),
    }
}

/// Whether the cases are those in the repository, all of whose arrays have to be compared.
pub fn is_default_folder() -> bool {
    std::env::var_os(FOLDER_VARIABLE).is_none()
}

/// All cases of [`folder`], in order of name.
///
/// # Panics
/// With a message for the tester, if the folder cannot be read or holds no case.
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
    arrays: StateDict,
}

/// How far a number may be from the expected one: `absolute + relative * |expected|`.
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

    /// The largest difference that passes.
    pub fn of(self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs()
    }
}

/// An array of a case, as f64 (exact for all that cases hold).
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row by row.
    pub values: Vec<f64>,
}

impl Case {
    /// Reads the case in a folder.
    ///
    /// # Panics
    /// Naming the folder, if it is not a case.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("case.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()));
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()));
        let arrays = StateDict::open(folder.join("io.safetensors")).unwrap_or_else(|error| panic!("{error}"));
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, folder: folder.into(), json, arrays }
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which reader it needs.
    pub fn kind(&self) -> &str {
        self.json.get("kind").and_then(Value::as_str).unwrap_or("without a kind")
    }

    /// A file of the case.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What stands at a JSON pointer (`/config/depth`), if anything but null.
    pub fn find<T: DeserializeOwned>(&self, pointer: &str) -> Option<T> {
        let value = self.json.pointer(pointer).filter(|value| !value.is_null())?;
        let parsed = serde_json::from_value(value.clone());
        Some(parsed.unwrap_or_else(|error| panic!("case `{}`: `{pointer}`: {error}", self.name)))
    }

    /// What stands at a JSON pointer.
    ///
    /// # Panics
    /// Naming case and place, if nothing does, or something else.
    pub fn get<T: DeserializeOwned>(&self, pointer: &str) -> T {
        self.find(pointer).unwrap_or_else(|| panic!("case `{}` has no `{pointer}` in its case.json", self.name))
    }

    /// The fields called `names` of the objects at `pointers`; where several have one, the first object's counts.
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

    /// Names of arrays in a role: `input` or `expected`.
    pub fn arrays_of_role(&self, role: &str) -> Vec<String> {
        let arrays: Map<String, Value> = self.get("/arrays");
        arrays
            .into_iter()
            .filter(|(_, about)| about.get("role").and_then(Value::as_str) == Some(role))
            .map(|(name, _)| name)
            .collect()
    }

    /// The names of all arrays.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys()
    }

    /// Whether the case has an array.
    pub fn has(&self, name: &str) -> bool {
        self.arrays.contains(name)
    }

    /// An array on the host.
    ///
    /// # Panics
    /// Naming case and array, if there is none.
    pub fn array(&self, name: &str) -> Array {
        let data = self.arrays.tensor(name).unwrap_or_else(|error| panic!("case `{}`: {error}", self.name));
        let shape = data.shape().to_vec();
        let values = data.try_into_vec_as().unwrap_or_else(|error| panic!("case `{}`: `{name}`: {error}", self.name));
        Array { shape, values }
    }

    /// A float array on a device.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(name, D), device)
    }

    /// An integer array on a device.
    pub fn ids<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        Tensor::from_data(self.data(name, D), device)
    }

    fn data(&self, name: &str, axes: usize) -> burn::tensor::TensorData {
        let data = self.arrays.tensor(name).unwrap_or_else(|error| panic!("case `{}`: {error}", self.name));
        assert_eq!(data.rank(), axes, "case `{}`: axes of `{name}`, which is {:?}", self.name, data.shape());
        data
    }

    /// The tolerance of an array, or of a group that it belongs to; the array's name comes first.
    ///
    /// # Panics
    /// If the case has none for either.
    pub fn tolerance(&self, name: &str, group: &str) -> Tolerance {
        let tolerances: Value = self.get("/tolerances");
        let found = match &tolerances {
            Value::Object(entries) => [name, group].into_iter().find_map(|wanted| {
                entries
                    .iter()
                    .find(|(patterns, _)| patterns.split('/').any(|pattern| matches(pattern, wanted)))
                    .map(|(_, value)| value)
            }),
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

/// Whether a name fits a pattern, in which `*` stands for anything.
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
    use super::*;

    #[test]
    fn patterns_match_as_globs() {
        let cases = [("ids_*", "ids_3", true), ("ids_*", "extra_ids_3", false), ("*.keep", "k5.keep", true)];
        for (pattern, name, expected) in cases.into_iter().chain([("f", "f_hat", false), ("a*c*e", "abcde", true)]) {
            assert_eq!(matches(pattern, name), expected, "`{name}` against `{pattern}`");
        }
    }
}
