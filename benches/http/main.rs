//! `cargo bench --bench http`: appends, reads, consumer groups and feeds over HTTP, beside raw calls of the same Redis, an
//! HTTP server that does nothing, and other servers that are used for the same, in turns, so that the ratios say something
//! where the numbers do not. See `docs/bench.md`.

mod bench;
mod clients;
mod closed;
mod echo;
mod feed_tables;
mod feeds;
mod followers;
mod group_commit;
mod groups;
mod growth;
mod load;
mod open;
mod open_table;
mod peers;
mod plot;
mod process;
mod report;
mod rows;
mod streams;
mod wire;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use bench::{Arguments, Bench, What};
use closed::Closed;
use feeds::Feeds;

fn main() -> ExitCode {
    let arguments = Arguments::get();
    if let Some(address) = arguments.echo {
        echo::serve(address);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    // What it has started ends with it, and its folders go, also where it is told to end.
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = told_to_end() => ExitCode::FAILURE,
            () = run(arguments) => ExitCode::SUCCESS,
        }
    })
}

async fn told_to_end() {
    let signal = |kind| signal(kind).expect("signals can be waited for");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn run(arguments: Arguments) {
    let bench = Bench::start(arguments.clone());
    let closed = Closed::new(&bench);
    let rows = closed.run(closed.rows()).await;
    report::print("Closed loop", &rows, arguments.fsync, &bench.notes);
    let mut at_rates = Vec::new();
    if arguments.wants(What::Open) {
        at_rates = open_table::run(&bench, &closed).await;
        open_table::print(&bench, &at_rates);
    }
    if let Some(file) = &arguments.plot {
        plot::write(file, &rows, &at_rates, report::durability(arguments.fsync), &bench.notes);
    }
    let bench = bench.without_peers();
    if arguments.wants(What::Growth) {
        growth::run(&arguments).await;
    }
    if arguments.wants(What::Fsync) {
        group_commit::run(&arguments).await;
    }
    if arguments.wants(What::Feeds) {
        Feeds::start(&bench).run().await.print();
    }
}
