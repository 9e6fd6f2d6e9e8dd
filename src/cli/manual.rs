//! `streamkeep completions` and `streamkeep man`

use std::io::{self, Write as _};

use clap::CommandFactory as _;

use super::Failure;
use crate::config::{Cli, Completions, Man};

/// Prints what a shell is to know of the commands and their options.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(settings: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(settings.shell, &mut Cli::command(), "streamkeep", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Writes the manual: a page for the program, and one for each command.
///
/// # Errors
/// The folder cannot be written.
pub fn man(settings: &Man) -> Result<(), Failure> {
    let fault = |error: io::Error| format!("cannot write to {}: {error}", settings.folder.display());
    std::fs::create_dir_all(&settings.folder).map_err(fault)?;
    Ok(clap_mangen::generate_to(Cli::command(), &settings.folder).map_err(fault)?)
}
