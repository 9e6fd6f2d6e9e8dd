//! The container image, as far as it can be checked where there is no Docker.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::tidy::{files, root};

fn sh(folder: &Path, script: &str) {
    let output = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The lines of the stage that builds.
fn build_stage(dockerfile: &str) -> impl Iterator<Item = &str> {
    dockerfile.lines().skip_while(|line| !line.starts_with("FROM ")).take_while(|line| !line.is_empty())
}

/// The folder that the Dockerfile gives to `cargo build`.
fn copied(dockerfile: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for line in build_stage(dockerfile) {
        if let Some(paths) = line.strip_prefix("COPY ") {
            let (sources, target) = paths.rsplit_once(' ').unwrap();
            for source in sources.split(' ').map(|path| root().join(path)) {
                // A folder's content goes into the target, as in an image.
                let content = if source.is_dir() { "/." } else { "" };
                let copy = format!("mkdir -p {target} && cp -R '{}{content}' {target}", source.display());
                sh(folder.path(), &copy);
            }
        } else if let Some(command) = line.strip_prefix("RUN ").filter(|command| !command.contains("cargo build")) {
            sh(folder.path(), command);
        }
    }
    folder
}

#[test]
fn the_image_is_built_from_all_that_cargo_needs() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let folder = copied(&dockerfile);
    // Reads the manifest, looks for the targets that it names, and compares the lock file.
    let output = Command::new(env!("CARGO"))
        .args(["fetch", "--locked", "--offline", "--target", "host-tuple"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for path in ["build.rs", ".cargo", "rust-toolchain", "rust-toolchain.toml"] {
        assert_eq!(root().join(path).exists(), folder.path().join(path).exists(), "{path}");
    }
    let mut included = 0;
    for (source, text) in files("src", "rs") {
        let copy = folder.path().join(source.strip_prefix(root()).unwrap());
        assert!(copy.exists(), "{}", source.display());
        for rest in ["include_str!(", "include_bytes!(", "include!("].iter().flat_map(|word| text.split(word).skip(1)) {
            // Where the rest of a path is put together, its beginning is a folder.
            let path = rest.split('"').nth(1).unwrap();
            assert!(copy.parent().unwrap().join(path).exists(), "{}: {path} is not copied", source.display());
            included += 1;
        }
    }
    assert!(included > 0);
}

#[test]
fn the_image_is_built_with_the_rust_of_the_manifest() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let from = build_stage(&dockerfile).next().unwrap();
    assert!(from.contains(concat!("/rust:", env!("CARGO_PKG_RUST_VERSION"), "-")), "{from}");
}

/// What a container's logs, or a file, are to keep is text.
#[test]
fn logs_have_colours_on_a_terminal_only() {
    let data = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_streamkeep"))
        .args(["migrate", "--data"])
        .arg(data.path())
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("INFO"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}
