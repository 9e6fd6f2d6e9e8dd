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

use bench::{Arguments, Bench, What};
use closed::Closed;
use feeds::Feeds;

fn main() {
    let arguments = Arguments::get();
    if let Some(address) = arguments.echo {
        return echo::serve(address);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let bench = Bench::start(arguments.clone());
    let closed = Closed::new(&bench);
    let rows = runtime.block_on(closed.run(closed.rows()));
    report::print("Closed loop", &rows, arguments.fsync, &bench.notes);
    let mut at_rates = Vec::new();
    if arguments.wants(What::Open) {
        at_rates = runtime.block_on(open_table::run(&bench, &closed));
        open_table::print(&bench, &at_rates);
    }
    if let Some(file) = &arguments.plot {
        plot::write(file, &rows, &at_rates, report::durability(arguments.fsync), &bench.notes);
    }
    let bench = bench.without_peers();
    if arguments.wants(What::Growth) {
        runtime.block_on(growth::run(&arguments));
    }
    if arguments.wants(What::Fsync) {
        runtime.block_on(group_commit::run(&arguments));
    }
    if arguments.wants(What::Feeds) {
        runtime.block_on(Feeds::start(&bench).run()).print();
    }
}
