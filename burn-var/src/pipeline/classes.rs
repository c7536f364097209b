use crate::{Error, Result};

/// Number of similar names that an error lists.
const SUGGESTIONS: usize = 5;

/// The classes of a model, with their names if it has any.
#[derive(Debug, Clone, Copy)]
pub struct ClassNames<'a> {
    /// Number of classes.
    pub count: usize,
    /// Names in the order of the labels; empty if the model has none.
    pub names: &'a [String],
}

impl ClassNames<'_> {
    /// Returns the name of a class, or `class N` if it has none.
    pub fn name(&self, class: usize) -> String {
        self.names.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }

    /// Resolves entries to class labels. An entry is a name, the beginning of one name only, a number, or several of
    /// them separated by commas.
    ///
    /// # Errors
    /// [`Error::Class`] for an entry that is not a class of the model, with similar names.
    pub fn find_all(&self, entries: &[impl AsRef<str>]) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for entry in entries.iter().map(AsRef::as_ref) {
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

    /// Resolves one class: a full name, else a number, else the beginning of one name only.
    ///
    /// # Errors
    /// The errors of [`ClassNames::find_all`].
    pub fn find(&self, entry: &str) -> Result<usize> {
        if let Some(class) = self.exact(entry) {
            return Ok(class);
        }
        let last = self.count.saturating_sub(1);
        if let Ok(number) = entry.trim().parse::<i64>() {
            return usize::try_from(number).ok().filter(|class| *class < self.count).ok_or_else(|| {
                Error::class(format!("there is no class {number}: this model has {} classes, 0 to {last}", self.count))
            });
        }
        let wanted = entry.trim().to_lowercase();
        if self.names.is_empty() {
            return Err(Error::class(format!(
                "this model has no names for its {} classes: give a number from 0 to {last} for `{}`",
                self.count,
                entry.trim()
            )));
        }
        let begins = |(class, name): (usize, &String)| name.to_lowercase().starts_with(&wanted).then_some(class);
        let matches: Vec<usize> = self.names.iter().enumerate().filter_map(begins).collect();
        match matches[..] {
            [class] if !wanted.is_empty() => Ok(class),
            [] => Err(Error::class(format!("there is no class `{}`{}", entry.trim(), self.suggestions(&wanted)))),
            _ => {
                let names: Vec<String> = matches.iter().take(SUGGESTIONS).map(|class| self.name(*class)).collect();
                Err(Error::class(format!("`{}` can be {}: write more of the name", entry.trim(), names.join(" or "))))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_beginnings() {
        let names = ["T-shirt", "Sneaker", "Shirt", "Ankle boot", "red, or pink", "7"].map(str::to_owned);
        let classes = ClassNames { count: 9, names: &names };
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
        let nameless = ClassNames { count: 3, names: &[] };
        let message = nameless.find_all(&["dog".to_owned()]).expect_err("no names").to_string();
        assert!(message.contains("0 to 2"), "{message}");
    }
}
