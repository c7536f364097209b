use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Prefix of a name in the Hugging Face cache.
const HUB: &str = "hub:";

/// Resolves a path: `hub:owner/repository` and `hub:owner/repository/file` to the snapshot of the main branch in the
/// local Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME/hub` or `~/.cache/huggingface/hub`), any other path to itself.
/// With the feature `hf-hub`, a missing file is downloaded.
///
/// # Errors
/// [`Error::Config`] for a malformed name, [`Error::Unsupported`] with the command to run for a file that is not in the
/// cache.
pub fn resolve(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    match path.to_str().and_then(|name| name.strip_prefix(HUB)) {
        Some(name) => find(name, &cache()?),
        None => Ok(path.to_owned()),
    }
}

fn cache() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(variable("HOME").or_else(|| variable("USERPROFILE"))?.join(".cache/huggingface"));
    let root = || Some(variable("HF_HOME").or_else(home)?.join("hub"));
    variable("HF_HUB_CACHE").or_else(root).ok_or_else(|| {
        Error::unsupported("a `hub:` name", "neither HF_HUB_CACHE, HF_HOME nor HOME says where the cache is")
    })
}

fn find(name: &str, cache: &Path) -> Result<PathBuf> {
    let mut parts = name.splitn(3, '/');
    let (owner, repository, file) = match (parts.next(), parts.next(), parts.next()) {
        (Some(owner), Some(repository), file) if !owner.is_empty() && !repository.is_empty() => {
            (owner, repository, file.filter(|file| !file.is_empty()))
        }
        _ => {
            return Err(Error::config(
                "name on the hub",
                name,
                "`hub:owner/repository` or `hub:owner/repository/file`",
            ));
        }
    };
    if name.split('/').any(|part| part == "..") {
        return Err(Error::config("name on the hub", name, "a name without `..`"));
    }
    let folder = cache.join(format!("models--{owner}--{repository}"));
    let commit = std::fs::read_to_string(folder.join("refs/main")).ok();
    let snapshot = commit.map(|commit| folder.join("snapshots").join(commit.trim()));
    let found = snapshot.map(|snapshot| file.map_or(snapshot.clone(), |file| snapshot.join(file)));
    match found.filter(|found| found.exists()) {
        Some(found) => Ok(found),
        None => missing(owner, repository, file, cache),
    }
}

#[cfg(not(feature = "hf-hub"))]
fn missing(owner: &str, repository: &str, file: Option<&str>, cache: &Path) -> Result<PathBuf> {
    let file = file.map_or_else(String::new, |file| format!(" {file}"));
    let hint = format!(
        "it is not in `{}`; run `hf download {owner}/{repository}{file}`, or build with the feature `hf-hub`",
        cache.display()
    );
    Err(Error::unsupported(format!("`hub:{owner}/{repository}{}`", file.replace(' ', "/")), hint))
}

#[cfg(feature = "hf-hub")]
fn missing(owner: &str, repository: &str, file: Option<&str>, cache: &Path) -> Result<PathBuf> {
    let Some(file) = file else {
        let hint = "a whole repository is not downloaded; name a file, `hub:owner/repository/file`";
        return Err(Error::unsupported(format!("`hub:{owner}/{repository}`"), hint));
    };
    super::download::download(owner, repository, file, cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_in_a_cache_and_paths_stay() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--owner--var");
        let snapshot = repository.join("snapshots/abc");
        std::fs::create_dir_all(snapshot.join("sub")).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "abc\n").unwrap();
        std::fs::write(snapshot.join("sub/x.pth"), "").unwrap();
        assert_eq!(find("owner/var/sub/x.pth", cache.path()).unwrap(), snapshot.join("sub/x.pth"));
        assert_eq!(find("owner/var", cache.path()).unwrap(), snapshot);
        for wrong in ["", "owner", "owner/", "/var/x", "owner/var/../../x"] {
            assert!(matches!(find(wrong, cache.path()), Err(Error::Config { .. })), "{wrong}");
        }
        assert_eq!(resolve("some/file.pth").unwrap(), Path::new("some/file.pth"));
    }

    #[cfg(not(feature = "hf-hub"))]
    #[test]
    fn a_file_that_is_not_there_says_how_to_get_it() {
        let cache = tempfile::tempdir().unwrap();
        let error = find("owner/var/x.pth", cache.path()).unwrap_err().to_string();
        assert!(error.contains("hf download owner/var x.pth") && error.contains("hf-hub"), "{error}");
    }
}
