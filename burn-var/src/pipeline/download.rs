//! Downloads into the Hugging Face cache: the feature `hf-hub`.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};

use crate::{Error, Result};

/// Downloads one file of a repository's main branch into `cache`, and returns its path there. The token of
/// `hf auth login` is used if there is one; `HF_ENDPOINT` names another server.
pub(super) fn download(owner: &str, repository: &str, file: &str, cache: &Path) -> Result<PathBuf> {
    from_server(ApiBuilder::from_env(), owner, repository, file, cache)
}

fn from_server(server: ApiBuilder, owner: &str, repository: &str, file: &str, cache: &Path) -> Result<PathBuf> {
    tracing::info!("downloading {owner}/{repository}/{file} into {}", cache.display());
    let server = server.with_cache_dir(cache.to_owned()).with_progress(false);
    let get = || server.build()?.model(format!("{owner}/{repository}")).get(file);
    get().map_err(|error: ApiError| {
        let hint = format!(
            "it is not in `{}`, and downloading it failed: {error}; check the network and the name, or run \
             `hf download {owner}/{repository} {file}` where there is a network and copy the cache",
            cache.display()
        );
        Error::unsupported(format!("`hub:{owner}/{repository}/{file}`"), hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_network_the_error_says_what_to_do() {
        let cache = tempfile::tempdir().unwrap();
        // Nothing listens on port 9 of this machine.
        let server = ApiBuilder::new().with_endpoint("http://127.0.0.1:9".to_owned());
        let error = from_server(server, "owner", "var", "x.pth", cache.path()).unwrap_err().to_string();
        assert!(error.contains("hub:owner/var/x.pth") && error.contains("check the network"), "{error}");
        assert!(error.contains("hf download owner/var x.pth"), "{error}");
    }
}
