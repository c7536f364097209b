//! Classes given by name or number.

use anyhow::Result;

use crate::output::usage;

/// Similar names listed in an error, at most.
const SUGGESTIONS: usize = 5;

/// The classes of a model: their number, and their names if the model has them.
#[derive(Debug, Clone)]
pub(crate) struct Classes<'a> {
    pub(crate) count: usize,
    pub(crate) names: &'a [String],
}

impl Classes<'_> {
    /// Returns one class per image, cycling through all classes.
    pub(crate) fn in_turn(&self, count: usize) -> Vec<usize> {
        in_turn(&(0..self.count).collect::<Vec<usize>>(), count)
    }

    /// Returns the name of a class, or `class N` if it has none.
    pub(crate) fn name(&self, class: usize) -> String {
        self.names.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }

    /// Resolves entries to class numbers. An entry is a name, a number, or several of them separated by commas.
    pub(crate) fn find_all(&self, entries: &[String]) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for entry in entries {
            match self.exact(entry) {
                // A name may contain a comma.
                Some(class) => found.push(class),
                None => entry.split(',').try_for_each(|part| self.find(part).map(|class| found.push(class)))?,
            }
        }
        Ok(found)
    }

    fn exact(&self, name: &str) -> Option<usize> {
        let name = name.trim().to_lowercase();
        self.names.iter().position(|known| known.to_lowercase() == name)
    }

    /// Resolves one class: a full name, else a number, else a prefix that only one name has.
    fn find(&self, entry: &str) -> Result<usize> {
        if let Some(class) = self.exact(entry) {
            return Ok(class);
        }
        let last = self.count - 1;
        if let Ok(number) = entry.trim().parse::<i64>() {
            return usize::try_from(number).ok().filter(|class| *class < self.count).ok_or_else(|| {
                usage(format!("there is no class {number}: this model has {} classes, 0 to {last}", self.count))
            });
        }
        let wanted = entry.trim().to_lowercase();
        if self.names.is_empty() {
            return Err(usage(format!(
                "this model has no names for its {} classes: give a number from 0 to {last} for `{}`",
                self.count,
                entry.trim()
            )));
        }
        let begins = |(class, name): (usize, &String)| name.to_lowercase().starts_with(&wanted).then_some(class);
        let matches: Vec<usize> = self.names.iter().enumerate().filter_map(begins).collect();
        match matches[..] {
            [class] if !wanted.is_empty() => Ok(class),
            [] => Err(usage(format!("there is no class `{}`{}", entry.trim(), self.suggestions(&wanted)))),
            _ => {
                let names: Vec<String> = matches.iter().take(SUGGESTIONS).map(|class| self.name(*class)).collect();
                Err(usage(format!("`{}` can be {}: write more of the name", entry.trim(), names.join(" or "))))
            }
        }
    }

    /// Lists the most similar names; without any, the first names of the model.
    fn suggestions(&self, wanted: &str) -> String {
        let distance = |name: &String| {
            let name = name.to_lowercase();
            if name.contains(wanted) { 0 } else { strsim::levenshtein(wanted, &name) }
        };
        let mut near: Vec<(usize, &String)> = self.names.iter().map(|name| (distance(name), name)).collect();
        near.sort_by_key(|(distance, _)| *distance);
        let limit = wanted.chars().count() / 2 + 1;
        let close: Vec<&str> =
            near.iter().take_while(|near| near.0 <= limit).take(SUGGESTIONS).map(|near| near.1.as_str()).collect();
        if !close.is_empty() {
            return format!("; did you mean {}?", close.join(" or "));
        }
        let names: Vec<&str> = self.names.iter().take(20).map(String::as_str).collect();
        let more = if self.names.len() > names.len() { ", ..." } else { "" };
        format!("; this model's classes are {}{more}", names.join(", "))
    }
}

/// Returns sorted labels for `count` images, the same number per class to within one.
pub(crate) fn equal_parts(classes: &[usize], count: usize) -> Vec<usize> {
    (0..count).map(|i| classes[(i as u128 * classes.len() as u128 / count as u128) as usize]).collect()
}

/// Returns labels for `count` images that cycle through `classes`, so that metrics over a part of the images see all
/// classes.
pub(crate) fn in_turn(classes: &[usize], count: usize) -> Vec<usize> {
    classes.iter().copied().cycle().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_beginnings() {
        let names = ["T-shirt", "Sneaker", "Shirt", "Ankle boot", "red, or pink", "7"].map(str::to_owned);
        let classes = Classes { count: 9, names: &names };
        let find = |entry: &str| classes.find_all(&[entry.to_owned()]).map_err(|error| error.to_string());
        assert_eq!(find("ankle BOOT,1 , sn"), Ok(vec![3, 1, 1]), "a name, a number and a beginning");
        assert_eq!(find("red, or pink"), Ok(vec![4]), "a name with a comma");
        assert_eq!(find("7"), Ok(vec![5]), "a name goes before a number");
        assert_eq!(find("8"), Ok(vec![8]), "a class without a name");
        for (entry, expected) in [
            ("s", "`s` can be Sneaker or Shirt"),
            ("9", "no class 9: this model has 9 classes, 0 to 8"),
            ("-1", "no class -1"),
            ("sneeker", "did you mean Sneaker?"),
            ("boot", "did you mean Ankle boot?"),
            // Edits count letters, not bytes: two edits here, but four bytes, and the limit is three.
            ("śhírt", "did you mean Shirt?"),
            ("elephant in the room", "classes are T-shirt, Sneaker"),
            ("", "can be"),
        ] {
            let message = find(entry).expect_err("not a class");
            assert!(message.contains(expected), "`{entry}`: {message}");
        }
        let nameless = Classes { count: 3, names: &[] };
        let message = nameless.find_all(&["dog".to_owned()]).expect_err("no names").to_string();
        assert!(message.contains("0 to 2"), "{message}");
    }

    #[test]
    fn parts_are_equal() {
        assert_eq!(equal_parts(&[4, 1], 4), [4, 4, 1, 1], "two each");
        assert_eq!(equal_parts(&[0, 1, 2], 5), [0, 0, 1, 1, 2], "to within one");
        assert_eq!(equal_parts(&[0, 1, 2], 2), [0, 1], "fewer than classes");
        assert_eq!(in_turn(&[4, 1, 7], 5), [4, 1, 7, 4, 1], "in turn");
    }
}
