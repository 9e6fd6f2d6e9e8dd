//! Shell completions, and the manual.

use std::{fs, process::Command};

use tempfile::TempDir;

use crate::readme::is_there;

fn streamkeep(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_streamkeep")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Has bash complete a line, with nothing but the script loaded.
fn completed(script: &str, line: &str) -> String {
    let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
    let ask = format!(
        "{script}\nCOMP_WORDS=({}); COMP_CWORD={}\n_streamkeep streamkeep '{}' ''\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words.len() - 1,
        line.rsplit(' ').next().unwrap(),
    );
    let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn shells_complete_commands_and_options() {
    let folder = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(streamkeep(&["completions", shell])).unwrap();
        assert!(script.contains("admin-listen"), "{shell}");
        if ["bash", "zsh", "fish"].contains(&shell) && is_there(shell) {
            let path = folder.path().join(shell);
            fs::write(&path, &script).unwrap();
            let output = Command::new(shell).arg("-n").arg(&path).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
        }
        if shell == "bash" && is_there(shell) {
            assert_eq!(completed(&script, "streamkeep exp"), "export\n");
            assert_eq!(completed(&script, "streamkeep serve --admin"), "--admin-listen\n");
        }
    }
}

#[test]
fn every_command_has_a_page_of_the_manual() {
    let folder = TempDir::new().unwrap();
    let pages = folder.path().join("man1");
    streamkeep(&["man", pages.to_str().unwrap()]);
    let help = String::from_utf8(streamkeep(&["--help"])).unwrap();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands = commands.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    for command in commands.filter(|name| name.chars().all(|c| c.is_ascii_lowercase())) {
        let page = pages.join(format!("streamkeep-{command}.1"));
        assert!(fs::read_to_string(&page).is_ok_and(|page| page.contains(".SH SYNOPSIS")), "{}", page.display());
    }
    if is_there("groff") {
        for page in fs::read_dir(&pages).unwrap() {
            let output = Command::new("groff").args(["-man", "-ww", "-Tutf8", "-z"]).arg(page.unwrap().path()).output();
            let output = output.unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }
    let serve = fs::read_to_string(pages.join("streamkeep-serve.1")).unwrap();
    assert!(serve.contains("STREAMKEEP_LISTEN"), "{serve}");
}
