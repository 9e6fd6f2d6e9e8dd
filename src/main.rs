//! The program.

use std::{io, process::ExitCode};

use clap::Parser as _;
use streamkeep::{
    cli::{self, Failure},
    config::{Cli, Command},
    http,
};
use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let ended = match runtime(&command) {
        Ok(runtime) => {
            let ended = runtime.block_on(run(command));
            // What still runs is of no use to anybody. A look-up of a name in the system's resolver, which may take minutes where
            // no name server answers, would hold up the end.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("streamkeep: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(command: &Command) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Command::Serve(settings) = command {
        builder.worker_threads(settings.threads());
    }
    builder.enable_all().build()
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
            Ok(io::Write::write_all(&mut io::stdout(), document.as_bytes())?)
        }
    }
}
