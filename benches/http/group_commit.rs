//! What concurrent writers gain where every append is on disk before it is answered: they share syncs.

use streamkeep::redis_server::AppendFsync;

use crate::{
    bench::{Arguments, Bench},
    closed::Closed,
    report::{self, line},
    rows::{CROWD, Row, Target, Work},
};

/// Measures and prints one writer and many, on a Redis of its own that syncs always.
pub async fn run(arguments: &Arguments) {
    let bench = Bench::start(Arguments { fsync: AppendFsync::Always, no_peers: true, ..arguments.clone() });
    let targets = [Target::Raw, Target::Http, Target::Against].into_iter().filter(|target| bench.has(*target));
    let row = |connections| targets.clone().map(move |target| Row::new(Work::Append, 1, connections, target));
    let rows = Closed::new(&bench).run([1, CROWD].into_iter().flat_map(row).collect()).await;
    report::print("Group commit", &rows, bench.arguments.fsync, &[]);
    line("");
    line("| target     | writers | times one writer's rate |");
    line("|---|---:|---:|");
    for row in rows.iter().filter(|row| row.connections == CROWD) {
        let one = rows.iter().find(|one| (one.target, one.connections) == (row.target, 1)).expect("both were measured");
        line(&format!("| {:<10} | {CROWD:>7} | {:>23.1} |", row.target.name(), row.rate_of(one)));
    }
}
