//! Checkpoints of the discriminator's heads.

use super::KeyMap;

/// How StyleGAN-T and AID-VAR name the heads' parameters, from `heads.` on.
pub fn heads_keys() -> KeyMap {
    KeyMap::new("discriminator heads", &[], |path| {
        let path = path.strip_prefix("heads.").unwrap_or(path);
        [
            ("first.conv", "main.0.0"),
            ("first.norm", "main.0.1"),
            ("second.conv", "main.1.fn.0"),
            ("second.norm", "main.1.fn.1"),
        ]
        .iter()
        .fold(path.to_owned(), |path, (ours, theirs)| path.replace(ours, theirs))
    })
}
