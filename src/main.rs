//! The program.

use std::process::ExitCode;

use clap::Parser as _;
use streamkeep::{
    cli::{self, Failure},
    config::{Cli, Command},
    http,
};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("streamkeep: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(settings) => cli::serve(*settings).await,
        Command::Migrate(settings) => cli::migrate(settings).await,
        Command::Verify(settings) => cli::verify(settings).await,
        Command::Copy(settings) => cli::copy(settings).await,
        Command::Doctor(settings) => cli::doctor(settings).await,
        Command::Import(settings) => cli::import(settings).await,
        Command::Export(settings) => cli::export(settings).await,
        Command::Tail(settings) => cli::tail(settings).await,
        Command::Health(settings) => cli::health(settings).await,
        Command::Key { command } => cli::key(command),
        Command::Completions(settings) => cli::completions(&settings),
        Command::Man(settings) => cli::man(&settings),
        Command::Openapi => {
            let document = http::document().to_yaml()?;
            Ok(std::io::Write::write_all(&mut std::io::stdout(), document.as_bytes())?)
        }
    }
}
