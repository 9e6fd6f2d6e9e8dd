//! `streamkeep key new`

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::Failure;
use crate::{
    config::{KeyCommand, NewKey},
    http::{KeyLine, Rights},
};

/// Makes a key, and prints it: nobody can find it out later. Its line goes to the file, or is printed too.
///
/// # Errors
/// The id or the time breaks the rules, or the file cannot be written.
pub fn key(command: KeyCommand) -> Result<(), Failure> {
    let KeyCommand::New(NewKey { id, verbs, streams, groups, expires, file }) = command;
    let (key, line) = KeyLine::new(&id, Rights { verbs, streams, groups }, expires)?;
    let line = serde_json::to_string(&line)?;
    if let Some(path) = &file {
        add(path, &line).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(writeln!(io::stdout(), "{key}")?);
    }
    Ok(writeln!(io::stdout(), "{key}\n{line}")?)
}

/// Adds a line in one write, so that a service that reads meanwhile never sees a part of it.
fn add(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let before = if ends_in_a_line(&mut file)? { "" } else { "\n" };
    file.write_all(format!("{before}{line}\n").as_bytes())?;
    file.sync_all()
}

fn ends_in_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
