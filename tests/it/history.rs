//! Histories of thousands of appends through two instances, checked event by event; and that the check finds planted
//! bugs.

use std::time::Instant;

use streamkeep::store::Library;

use crate::{
    app::{TestApp, TestRedis},
    checker::{Violation, check},
    end::read_end,
    load::Load,
    record::{Call, Outcome},
};

/// Runs a load through two instances of a service with this library, and checks it.
async fn run(partitions: u16, library: &Library, writers: usize, operations: usize) -> (Vec<Call>, Vec<Violation>) {
    let redis = TestRedis::start().await;
    let first = TestApp::start_with(redis.clone(), partitions, |config| config.store.library = library.clone()).await;
    let second = TestApp::start_with(redis.clone(), partitions, |config| config.store.library = library.clone()).await;
    let mut load = Load::new(writers, vec![first.url.clone(), second.url.clone()]);
    (load.operations, load.cut) = (operations, 0.05);
    let began = Instant::now();
    load.start().join_all().await;
    let (took, began) = (began.elapsed(), Instant::now());
    let calls = load.recorder.take();
    let end = read_end(&second.url, &mut redis.connection().await, partitions).await;
    let violations = check(&calls, &end);
    let (acked, wrong) = (load.recorder.acked(), violations.len());
    println!("{operations} operations, {acked} acked, {wrong} violations");
    println!("{} calls, {partitions} partitions, {took:?} and {:?} for the check", calls.len(), began.elapsed());
    (calls, violations)
}

async fn run_clean(partitions: u16, operations: usize) {
    let (calls, violations) = run(partitions, &Library::default(), 64, operations).await;
    assert_eq!(violations, []);
    let count = |wanted: &dyn Fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count();
    let conflicts = count(&|call| matches!(&call.outcome, Outcome::Refused { status: 409, .. }));
    let duplicates = count(&|call| matches!(&call.outcome, Outcome::Ok(told) if told.duplicate));
    let cut = count(&|call| call.outcome == Outcome::Unknown);
    let batches = count(&|call| matches!(call.outcome, Outcome::Ok(_)) && call.operation.events.len() > 1);
    println!("{conflicts} conflicts, {duplicates} duplicates, {cut} cut, {batches} batches");
    assert!(conflicts > operations / 20 && batches > operations / 20, "the load was too easy");
    assert!(cut > operations / 100, "hardly a call was cut");
    assert!(duplicates > operations / 1000, "no cut call had been carried out");
    assert!(cut > duplicates * 2, "all cut calls had been carried out");
    let refused = |call: &&Call| matches!(&call.outcome, Outcome::Refused { code, .. } if code != "version-conflict");
    assert!(calls.iter().find(refused).is_none(), "{:?}", calls.iter().find(refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_appends_on_one_partition() {
    run_clean(1, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_appends_on_four_partitions() {
    run_clean(4, 20_000).await;
}

/// The violations of a store whose functions have a bug: `line` is `instead`.
async fn run_planted(line: &str, instead: &str) -> Vec<Violation> {
    let source = Library::source();
    assert_eq!(source.matches(line).count(), 1, "the line to plant the bug in is there once: {line}");
    let library = Library::from_source(&source.replace(line, instead));
    let (_, violations) = run(1, &library, 16, 1_000).await;
    violations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_check_left_out_is_found() {
    let head = "local function holds(condition, version)\n";
    let violations = run_planted(head, &format!("{head}  do return true end\n")).await;
    assert!(violations.iter().any(|violation| matches!(violation, Violation::ConditionBroken { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_entry_left_out_is_found() {
    let line = "    position = add_pointer(shared.log, append.stream, first + i - 1, kind, position + 1)\n";
    let violations = run_planted(line, &format!("    if first % 10 ~= 0 then\n{line}    end\n")).await;
    assert!(violations.iter().any(|violation| matches!(violation, Violation::NotInLog { .. })), "{violations:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_left_unread_is_found() {
    let line = "    return check_index(append)\n";
    let violations = run_planted(line, "    return nil\n").await;
    assert!(violations.iter().any(|violation| matches!(violation, Violation::Double { .. })), "{violations:?}");
}
