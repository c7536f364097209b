//! Runs the command transcripts in the documentation, and compares what the commands print.
//!
//! `TRYCMD=overwrite cargo test --release --workspace --test transcripts` writes what they print now.

use std::path::Path;

#[test]
fn transcripts_show_what_the_command_prints() {
    // A reader runs these commands at the top of the repository.
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::set_current_dir(&top).expect("the top of the repository");
    trycmd::TestCases::new()
        .register_bin("burn-var", Path::new(env!("CARGO_BIN_EXE_burn-var")))
        .case("README.md")
        .case("docs/*.md")
        .case("burn-var-cli/tests/transcripts/*.md");
}
