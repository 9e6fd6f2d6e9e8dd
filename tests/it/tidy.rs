//! Habits, checked: who may import whom, headers of Lua files, lengths, licences, and no traces of other things.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn files(folder: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Transport and storage know the vocabulary, never each other's insides; the vocabulary knows nobody.
#[test]
fn layers_import_in_one_direction() {
    for (folder, forbidden) in [
        (
            "src/model",
            &["crate::store", "crate::http", "crate::cli", "crate::config", "axum", "redis::", "tokio::"][..],
        ),
        ("src/store", &["crate::http", "crate::cli", "crate::config", "axum"][..]),
        ("src/http", &["crate::cli", "crate::config", "redis::", "deadpool"][..]),
    ] {
        for (path, text) in files(folder, "rs") {
            let used = forbidden
                .iter()
                .find(|word| text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(**word)));
            assert!(used.is_none(), "{}: {used:?}", path.display());
        }
    }
}

#[test]
fn only_one_place_makes_up_keys() {
    for (path, text) in files("src/store", "rs").into_iter().filter(|(path, _)| !path.ends_with("keys.rs")) {
        for key in ["\"events:", "\"ids:", "\"stream:", "\"log\"", "\"streamkeep:"] {
            assert!(!text.contains(key), "{} makes up the key {key}", path.display());
        }
    }
}

#[test]
fn lua_files_have_their_headers() {
    for (path, text) in files("migrations-lua/functions", "lua") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if ["library", "groups"].contains(&name) {
            continue;
        }
        assert!(text.starts_with(&format!("-- es_{name}: ")), "{name}: purpose");
        for section in ["-- KEYS ", "-- ARGV ", "-- RETURNS ", "-- ERRORS "] {
            assert!(text.contains(section), "{name}: {section}");
        }
        assert!(text.contains(&format!("'es_{name}' .. suffix")), "{name}: registration");
    }
}

#[test]
fn files_and_functions_stay_short() {
    for (path, text) in files("src", "rs").into_iter().chain(files("tests", "rs")).chain(files("migrations-lua", "lua"))
    {
        let lines = text.lines().count();
        assert!(lines <= 500, "{}: {lines} lines", path.display());
    }
    for (path, text) in files("src", "rs") {
        let mut began: Option<(usize, usize)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let signature = line.trim_start();
            let function = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(super) fn ", "pub(super) async fn "];
            if began.is_none() && function.iter().any(|start| signature.starts_with(start)) {
                began = Some((number, indent));
            }
            if let Some((first, of)) = began.filter(|(_, of)| signature == "}" && indent == *of) {
                assert!(
                    number - first <= 70,
                    "{}:{}: a function of {} lines",
                    path.display(),
                    first + 1,
                    number - first
                );
                let _ = of;
                began = None;
            }
        }
    }
}

/// Every problem that can be answered is explained where its `type` says.
#[test]
fn every_problem_is_documented() {
    let page = fs::read_to_string(root().join("docs/problems.md")).unwrap();
    for code in streamkeep::http::Code::ALL {
        let (status, code, title, _) = code.facts();
        assert!(page.contains(&format!("## {code}\n")), "{code}");
        assert!(page.contains(&format!("{} · {title}", status.as_u16())), "{code}: its status and title");
    }
}

/// Every setting of the service stands in the README, as `--help` tells it.
#[test]
fn every_setting_is_documented() {
    use clap::CommandFactory as _;
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let cli = streamkeep::config::Cli::command();
    let serve = cli.find_subcommand("serve").unwrap();
    let mut table = "| setting | variable | default | meaning |\n|---|---|---|---|\n".to_owned();
    for setting in serve.get_arguments().filter(|setting| setting.get_id() != "help") {
        let defaults: Vec<_> = setting.get_default_values().iter().map(|value| value.to_str().unwrap()).collect();
        let default = match defaults.concat().as_str() {
            "" | "false" => String::new(),
            default => format!("`{default}`"),
        };
        let (long, variable) = (setting.get_long().unwrap(), setting.get_env().unwrap().to_str().unwrap());
        writeln!(table, "| `--{long}` | `{variable}` | {default} | {} |", setting.get_help().unwrap()).unwrap();
    }
    assert!(readme.contains(&table), "the README lacks this table:\n{table}");
}

/// Licences that go with MIT OR Apache-2.0.
#[test]
fn dependencies_have_licences_that_fit() {
    const GOOD: &[&str] = &[
        "MIT",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "Unicode-3.0",
        "0BSD",
        "Unlicense",
        "CC0-1.0",
        "MIT-0",
        "BSL-1.0",
        "Apache-2.0 WITH LLVM-exception",
        "bzip2-1.0.6",
    ];
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p}\t{l}", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.lines().count() > 100, "{tree}");
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (package, licence) = line.split_once('\t').unwrap();
        let licence = licence.trim_end_matches(" (*)").replace('/', " OR ");
        // One alternative must do; where several hold at once, each.
        let fits = licence.split(" OR ").any(|alternative| {
            let alternative = alternative.trim_matches(['(', ')', ' ']);
            GOOD.contains(&alternative)
                || alternative.split(" AND ").all(|part| GOOD.contains(&part.trim_matches(['(', ')', ' '])))
        });
        assert!(fits, "{package}: {licence}");
    }
}
