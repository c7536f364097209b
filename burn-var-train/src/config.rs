//! One TOML file is one run: read strictly, saved resolved, compared on resume.
//!
//! The types deny unknown keys themselves (`#[serde(deny_unknown_fields, default)]`); what is here names file, line and
//! key to the user.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Value;

use crate::fs::atomic_write;
use crate::{Error, Result};

const FILE: &str = "config.toml";

/// Permitted difference of a key from the one that the run was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// In any way: it does not touch the weights (how often to log, where images go).
    Free,
    /// Upwards only: the number of steps.
    Raise,
}

/// Reads a configuration file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Format`] with line, column and key if it is not a `T`.
pub fn read_toml<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    toml::from_str(&text).map_err(|e| Error::format(path, e.to_string().trim_end().to_string()))
}

/// Reads a configuration file that may begin with `preset = "..."`: what it leaves out is as in that one of `presets`,
/// names and TOML. The values of `set`, by dotted keys, go before what the file says.
///
/// # Errors
/// The errors of [`read_toml`], and [`Error::Format`] listing the presets if there is none of that name.
pub fn read_toml_over<T: DeserializeOwned>(
    path: impl AsRef<Path>,
    presets: &[(&str, &str)],
    set: &[(String, Value)],
) -> Result<T> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let wrong = |e: toml::de::Error| Error::format(path, e.to_string().trim_end().to_string());
    let mut own: toml::Table = toml::from_str(&text).map_err(wrong)?;
    // Without presets it is a key like any other, and refused as one.
    let preset = if presets.is_empty() { None } else { own.remove("preset") };
    let mut whole = match preset {
        // From the text, whose lines an error can name.
        None if set.is_empty() => return toml::from_str(&text).map_err(wrong),
        None => toml::Table::new(),
        Some(name) => {
            let Some((_, preset)) = presets.iter().find(|(known, _)| name.as_str() == Some(known)) else {
                let known: Vec<&str> = presets.iter().map(|(name, _)| *name).collect();
                return Err(Error::format(path, format!("there is no preset {name}, but {}", known.join(", "))));
            };
            toml::from_str(preset).map_err(wrong)?
        }
    };
    overlay(&mut whole, own);
    for (key, value) in set {
        put(&mut whole, key, value.clone());
    }
    whole.try_into().map_err(wrong)
}

/// Puts a value under a dotted key, `guidance.weight` for instance, in place of what is there.
pub fn put(table: &mut toml::Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(toml::Table::new());
            }
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Reads a section in which absent keys have the values of `defaults`, those of the trainer at hand: a section that sets
/// one key leaves the others as they are without any section.
pub(crate) fn over<'de, T, D>(defaults: T, section: D) -> std::result::Result<T, D::Error>
where
    T: Serialize + DeserializeOwned,
    D: Deserializer<'de>,
{
    let given = toml::Table::deserialize(section)?;
    let mut table = toml::Table::try_from(defaults).map_err(D::Error::custom)?;
    table.extend(given);
    table.try_into().map_err(D::Error::custom)
}

/// Puts the keys of one table over those of another, section by section.
fn overlay(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// A difference between configuration files of older versions and today's.
#[derive(Debug, Clone, Copy)]
pub enum Upgrade {
    /// A key has a new place; both are dotted.
    Moved {
        /// The old key.
        from: &'static str,
        /// The new key.
        to: &'static str,
    },
    /// A key did not exist; files without it mean this value.
    Added {
        /// The dotted key.
        key: &'static str,
        /// The value that older versions worked with.
        meant: f64,
    },
}

impl Upgrade {
    fn apply(self, table: &mut toml::Table) {
        match self {
            Self::Moved { from, to } => {
                if let Some(value) = take(table, from) {
                    put(table, to, value);
                }
            }
            Self::Added { key, meant } => match take(table, key) {
                Some(value) => put(table, key, value),
                None => put(table, key, meant.into()),
            },
        }
    }
}

/// Removes the value under a dotted key.
fn take(table: &mut toml::Table, key: &str) -> Option<Value> {
    match key.split_once('.') {
        None => table.remove(key),
        Some((section, rest)) => take(table.get_mut(section)?.as_table_mut()?, rest),
    }
}

/// Writes the resolved configuration to `config.toml` in the run's folder, or compares it with the one that is there.
///
/// Returns true if it was there, that is if this may be a resumed run. `may_change` lists the keys, dotted, that may
/// differ; the file is then rewritten. `upgrades` says how to read files of older versions.
///
/// # Errors
/// [`Error::ConfigChanged`] listing every key that differs and must not; [`Error::Io`] if the file cannot be read or
/// written.
pub fn settle<T>(run: impl AsRef<Path>, config: &T, may_change: &[(&str, Change)], upgrades: &[Upgrade]) -> Result<bool>
where
    T: Serialize + DeserializeOwned,
{
    let run = run.as_ref();
    fs::create_dir_all(run).map_err(Error::io("create", run))?;
    let path = run.join(FILE);
    let as_text = |e: toml::ser::Error| Error::format(&path, e.to_string());
    let wrong = |e: toml::de::Error| Error::format(&path, e.to_string().trim_end().to_string());
    let text = toml::to_string_pretty(config).map_err(as_text)?;
    let found = match fs::read_to_string(&path) {
        Ok(found) => Some(found),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let exists = found.is_some();
    if let Some(found) = found {
        let mut table: toml::Table = toml::from_str(&found).map_err(wrong)?;
        upgrades.iter().for_each(|upgrade| upgrade.apply(&mut table));
        // Through `T`, so that keys which a newer version added have their defaults on both sides.
        let before = flat(&Value::try_from(table.try_into::<T>().map_err(wrong)?).map_err(as_text)?);
        let now = flat(&Value::try_from(config).map_err(as_text)?);
        let differences = differences(&before, &now, may_change);
        if !differences.is_empty() {
            return Err(Error::ConfigChanged { path, differences });
        }
        if before == now {
            return Ok(true);
        }
    }
    atomic_write(&path, text.as_bytes())?;
    Ok(exists)
}

fn differences(
    before: &BTreeMap<String, Value>,
    now: &BTreeMap<String, Value>,
    may_change: &[(&str, Change)],
) -> Vec<String> {
    let mut keys: Vec<_> = before.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    let describe = |value: Option<&Value>| value.map_or("absent".into(), Value::to_string);
    let mut found = Vec::new();
    for key in keys {
        let (old, new) = (before.get(key), now.get(key));
        if old == new {
            continue;
        }
        let note = match may_change.iter().find(|(name, _)| name == key).map(|(_, change)| change) {
            Some(Change::Free) => continue,
            Some(Change::Raise) if old.and_then(Value::as_integer) < new.and_then(Value::as_integer) => continue,
            Some(Change::Raise) => " (it may only be raised)",
            None => "",
        };
        found.push(format!("`{key}` was {}, is now {}{note}", describe(old), describe(new)));
    }
    found
}

/// Every value under its dotted key; lists count as one value.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    fn collect(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
        let Value::Table(table) = value else {
            into.insert(prefix.to_string(), value.clone());
            return;
        };
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            collect(&path, value, into);
        }
    }
    let mut into = BTreeMap::new();
    collect("", value, &mut into);
    into
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{LrSchedule, OptimConfig};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Run {
        steps: u64,
        log_every: u64,
        scales: Vec<usize>,
        seed: Option<u64>,
        learning_rate: LrSchedule,
        optimizer: OptimConfig,
    }

    impl Default for Run {
        fn default() -> Self {
            Self {
                steps: 100,
                log_every: 10,
                scales: vec![1, 2, 3],
                seed: None,
                learning_rate: LrSchedule::default(),
                optimizer: OptimConfig::default(),
            }
        }
    }

    const MAY_CHANGE: [(&str, Change); 2] = [("steps", Change::Raise), ("log_every", Change::Free)];

    #[test]
    fn a_misspelt_key_is_named_with_file_and_line() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("run.toml");
        fs::write(&path, "steps = 7\n[learning_rate]\npeek = 0.1\n").expect("write");
        let error = read_toml::<Run>(&path).expect_err("a misspelt key").to_string();
        for part in ["run.toml", "line 3", "`peek`", "`peak`"] {
            assert!(error.contains(part), "mentions {part}: {error}");
        }
        fs::write(&path, "steps = 7\n[learning_rate]\npeak = 0.1\ndecay = \"lin0\"\n").expect("write");
        let run = read_toml::<Run>(&path).expect("valid");
        assert_eq!((run.steps, run.log_every, run.learning_rate.peak), (7, 10, 0.1), "read, the rest by default");
    }

    #[test]
    fn settles_once_and_then_compares() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let run = folder.path().join("runs/first");
        let config = Run { seed: Some(3), ..Run::default() };
        assert!(!settle(&run, &config, &MAY_CHANGE, &[]).expect("new"), "a new run");
        assert!(settle(&run, &config, &MAY_CHANGE, &[]).expect("again"), "the same run again");
        assert_eq!(read_toml::<Run>(run.join(FILE)).expect("saved"), config, "the resolved file reads back");

        let more = Run { steps: 200, log_every: 1, ..config.clone() };
        assert!(settle(&run, &more, &MAY_CHANGE, &[]).expect("longer"), "more steps go on");
        assert_eq!(read_toml::<Run>(run.join(FILE)).expect("saved"), more, "and are saved");

        let mut other = Run { steps: 150, seed: None, scales: vec![1, 2], ..more.clone() };
        other.optimizer.beta_2 = 0.95;
        let error = settle(&run, &other, &MAY_CHANGE, &[]).expect_err("another run").to_string();
        for part in [
            "`optimizer.beta_2` was 0.999, is now 0.95",
            "`scales` was [1, 2, 3], is now [1, 2]",
            "`seed` was 3, is now absent",
            "`steps` was 200, is now 150 (it may only be raised)",
            "new folder",
        ] {
            assert!(error.contains(part), "mentions {part}: {error}");
        }
        assert_eq!(read_toml::<Run>(run.join(FILE)).expect("saved"), more, "the file is as it was");
    }

    #[test]
    fn a_key_that_came_later_has_its_default() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join(FILE), "steps = 100\n").expect("an old file");
        assert!(settle(folder.path(), &Run::default(), &MAY_CHANGE, &[]).expect("equal"), "defaults compare equal");
    }

    #[test]
    fn files_of_older_versions_are_read_with_what_they_meant() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join(FILE), "every = 7\nscales = [1, 2, 3]\n").expect("an old file");
        let upgrades = [
            Upgrade::Moved { from: "every", to: "log_every" },
            Upgrade::Added { key: "optimizer.weight_decay", meant: 0.5 },
        ];
        let mut config = Run { log_every: 7, ..Run::default() };
        let error = settle(folder.path(), &config, &MAY_CHANGE, &upgrades).expect_err("another decay");
        assert!(matches!(&error, Error::ConfigChanged { differences, .. } if differences.len() == 1), "{error}");
        assert!(error.to_string().contains("`optimizer.weight_decay` was 0.5, is now 0.01"), "{error}");
        config.optimizer.weight_decay = 0.5;
        assert!(settle(folder.path(), &config, &[], &upgrades).expect("equal"), "the same run");
    }
}
