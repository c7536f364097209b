//! The file of settings of a sweep.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use burn_var_train::config::{put, read_toml};
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::output::usage;
use crate::settings::FileSettings;

/// The file of settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sweep {
    /// Images for each setting, training and seed, in equal parts of all classes.
    pub(super) count: usize,
    /// Sampling seeds.
    pub(super) seeds: Vec<u64>,
    /// Name of the method that the others are compared with; the first if left out.
    #[serde(default)]
    baseline: Option<String>,
    /// The real images that the generated ones are compared with.
    #[serde(default)]
    pub(super) reference: RealImages,
    method: Vec<Method>,
}

/// Real images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RealImages {
    /// The test images.
    #[default]
    Test,
    /// Every tenth training image, to choose settings by.
    Validation,
}

impl RealImages {
    /// Returns the name in file names and messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }
}

/// One method, with fixed settings and some that vary.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
    name: String,
    /// File of the tokenizer; the command's if left out.
    #[serde(default)]
    tokenizer: Option<PathBuf>,
    /// File of the transformer; the command's if left out.
    #[serde(default)]
    transformer: Option<PathBuf>,
    /// Files of transformers that were trained alike, with several seeds.
    #[serde(default)]
    transformers: Vec<PathBuf>,
    #[serde(default)]
    settings: toml::Table,
    /// Values by the dotted name of a setting; all combinations are measured.
    #[serde(default)]
    vary: BTreeMap<String, Vec<Value>>,
    /// Values by the dotted name of a setting, one for each training: `"aid.file"` for instance.
    #[serde(default)]
    trainings: BTreeMap<String, Vec<Value>>,
}

/// One row of the table: a method with all of its settings.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) method: String,
    /// Description of the settings that vary.
    pub(super) varied: String,
    /// One, or several that were trained alike.
    pub(super) trainings: Vec<Training>,
}

impl Variant {
    /// Returns the name for messages.
    pub(super) fn name(&self) -> String {
        match self.varied.is_empty() {
            true => self.method.clone(),
            false => format!("{}, {}", self.method, self.varied),
        }
    }
}

/// The files and settings of one training.
#[derive(Debug)]
pub(super) struct Training {
    /// Files that belong to this training alone; empty if there is one training.
    pub(super) name: String,
    pub(super) tokenizer: Option<PathBuf>,
    pub(super) transformer: Option<PathBuf>,
    pub(super) settings: FileSettings,
}

impl Training {
    /// Returns the name of one training of a variant for messages.
    pub(super) fn label(&self, variant: &Variant) -> String {
        match self.name.is_empty() {
            true => variant.name(),
            false => format!("{}, {}", variant.name(), self.name),
        }
    }
}

impl Sweep {
    /// Reads a file, and returns it with its variants and the index of the baseline among them.
    pub(super) fn read(path: &Path) -> Result<(Self, Vec<Variant>, usize)> {
        let sweep: Self = read_toml(path)?;
        let wrong = |text: &str| usage(format!("`{}`: {text}", path.display()));
        if sweep.count < 2 || sweep.seeds.is_empty() || sweep.method.is_empty() {
            return Err(wrong("expected at least 2 images, a seed and a method"));
        }
        let mut variants = Vec::new();
        for method in &sweep.method {
            variants.extend(method.variants()?);
        }
        if variants.is_empty() {
            return Err(wrong("no setting is left to measure: a list in `vary` is empty"));
        }
        let baseline = match &sweep.baseline {
            None => 0,
            Some(name) => variants.iter().position(|variant| variant.method == *name).ok_or_else(|| {
                let names: Vec<&str> = sweep.method.iter().map(|method| method.name.as_str()).collect();
                wrong(&format!("there is no method `{name}` for a baseline, but {}", names.join(", ")))
            })?,
        };
        Ok((sweep, variants, baseline))
    }
}

impl Method {
    /// Returns all combinations of the settings that vary.
    fn variants(&self) -> Result<Vec<Variant>> {
        let mut combined = vec![(Vec::new(), self.settings.clone())];
        for (key, values) in &self.vary {
            let over = |(words, table): &(Vec<String>, toml::Table)| {
                let with = |value: &Value| {
                    let (mut words, mut table) = (words.clone(), table.clone());
                    words.push(format!("{key} {}", value.to_string().trim_matches('"')));
                    put(&mut table, key, value.clone());
                    (words, table)
                };
                values.iter().map(with).collect::<Vec<_>>()
            };
            combined = combined.iter().flat_map(over).collect();
        }
        let count = self.number_of_trainings()?;
        let variant = |(words, table): (Vec<String>, toml::Table)| {
            let trainings = (0..count).map(|i| self.training(i, &table)).collect::<Result<Vec<_>>>()?;
            Ok(Variant { method: self.name.clone(), varied: words.join(", "), trainings })
        };
        combined.into_iter().map(variant).collect()
    }

    /// Returns the length of all lists with one entry for each training.
    fn number_of_trainings(&self) -> Result<usize> {
        let wrong = |text: String| usage(format!("the method `{}`: {text}", self.name));
        if self.transformer.is_some() && !self.transformers.is_empty() {
            return Err(wrong("name `transformer` or `transformers`, not both".into()));
        }
        let mut lists: Vec<(&str, usize)> =
            self.trainings.iter().map(|(key, list)| (key.as_str(), list.len())).collect();
        if !self.transformers.is_empty() {
            lists.push(("transformers", self.transformers.len()));
        }
        let Some(&(first, count)) = lists.first() else { return Ok(1) };
        if count == 0 {
            return Err(wrong(format!("`trainings` has no value of `{first}`")));
        }
        match lists.iter().find(|(_, other)| *other != count) {
            Some((key, other)) => {
                Err(wrong(format!("`{first}` names {count} trainings and `{key}` {other}: expected as many of both")))
            }
            None => Ok(count),
        }
    }

    fn training(&self, index: usize, settings: &toml::Table) -> Result<Training> {
        let transformer = self.transformers.get(index).or(self.transformer.as_ref()).cloned();
        let mut settings = settings.clone();
        let mut names: Vec<String> =
            self.transformers.get(index).map(|file| file.display().to_string()).into_iter().collect();
        for (key, values) in &self.trainings {
            let Some(value) = values.get(index) else { continue };
            names.push(value.to_string().trim_matches('"').to_owned());
            put(&mut settings, key, value.clone());
        }
        let settings = settings.try_into().map_err(|error: toml::de::Error| {
            usage(format!("settings of the method `{}`: {}", self.name, error.to_string().trim_end()))
        })?;
        Ok(Training { name: names.join(", "), tokenizer: self.tokenizer.clone(), transformer, settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_combinations_vary() {
        let method: Method = toml::from_str(
            "name = 'SSG'\nsettings = { top_k = 3, ssg = { schedule = { decay = 1.0 } } }\n\
             vary = { temperature = [0.5, 1.0], 'ssg.schedule.decay' = [0.1, 0.2, 0.3] }",
        )
        .expect("valid");
        let variants = method.variants().expect("settings");
        let words: Vec<&str> = variants.iter().map(|variant| variant.varied.as_str()).collect();
        assert_eq!(words.len(), 6, "{words:?}");
        assert_eq!(words[1], "ssg.schedule.decay 0.1, temperature 1.0");
        assert!(variants.iter().all(|variant| variant.trainings.len() == 1 && variant.trainings[0].name.is_empty()));
        let wrong = Method { vary: [("temprature".to_owned(), vec![1.0.into()])].into(), ..method };
        let error = wrong.variants().expect_err("a misspelled setting").to_string();
        assert!(error.contains("SSG") && error.contains("temprature"), "{error}");
    }

    #[test]
    fn trainings_go_together() {
        let read = |text: &str| toml::from_str::<Method>(&format!("name = 'SAR'\n{text}")).expect("valid").variants();
        let variants = read(
            "tokenizer = 't'\ntransformers = ['a', 'b']\ntrainings = { 'aid.file' = ['x', 'y'] }\n\
             vary = { top_k = [1, 2] }",
        )
        .expect("even");
        assert_eq!(variants.len(), 2, "one row for each setting");
        for Variant { trainings, .. } in &variants {
            let files: Vec<_> = trainings.iter().map(|training| training.transformer.clone()).collect();
            assert_eq!(files, [Some("a".into()), Some("b".into())]);
            assert_eq!((trainings[1].name.as_str(), &trainings[1].tokenizer), ("b, y", &Some("t".into())));
            let aid = trainings[1].settings.aid.as_ref().expect("an injector");
            assert_eq!(aid.file, Some("y".into()), "the second of both");
        }
        let error = |text: &str| read(text).expect_err("wrong").to_string();
        assert!(error("transformer = 'a'\ntransformers = ['b']").contains("not both"));
        assert!(error("trainings = { lora = [] }").contains("no value of `lora`"));
        let uneven = error("transformers = ['b']\ntrainings = { lora = ['x', 'y'] }");
        assert!(uneven.contains("`lora` names 2 trainings and `transformers` 1"), "{uneven}");
    }
}
