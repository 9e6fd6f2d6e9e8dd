//! That the checker finds what is wrong in histories made by hand.

use std::sync::Arc;

use crate::{
    checker::{Violation, check},
    record::{Call, Condition, End, Identity, Operation, Outcome, Partition, Pointer, Stored, Told},
};

/// Operation `number` on the stream `s`, one event for each letter of `events`.
fn operation(number: usize, condition: Condition, events: &str) -> Arc<Operation> {
    let (stream, events) = ("s".to_owned(), events.chars().map(String::from).collect());
    Arc::new(Operation { number, stream, condition, identity: Identity::None, events })
}

fn call(operation: &Arc<Operation>, [called, returned]: [u64; 2], outcome: Outcome) -> Call {
    Call { operation: Arc::clone(operation), called, returned, outcome }
}

fn ok(first_version: u64, version: u64) -> Outcome {
    let etag = format!("\"{version}\"");
    Outcome::Ok(Told { first_version, version, position: version, duplicate: false, etag })
}

fn conflict(current: u64) -> Outcome {
    Outcome::Refused { status: 409, code: "version-conflict".to_owned(), current: Some(current) }
}

/// A store with the stream `s`, one event for each letter, version and position rising from 1.
fn end(events: &str) -> End {
    let stored = |(version, content): (u64, char)| {
        let (stream, id) = ("s".to_owned(), content.to_string());
        Stored { stream, version, position: version, content: id.clone(), id }
    };
    let events: Vec<Stored> = (1..).zip(events.chars()).map(stored).collect();
    let pointer = |event: &Stored| {
        let Stored { stream, version, position, .. } = event.clone();
        Pointer { position, stream, version }
    };
    let log = events.iter().map(pointer).collect();
    let mut partition = Partition { log, ..Partition::default() };
    partition.streams.insert("s".to_owned(), events.clone());
    let mut end = End { partitions: vec![partition], shown_log: events.clone(), ..End::default() };
    end.shown_streams.insert("s".to_owned(), events);
    end
}

/// Changes the stored events of `s`, in Redis and as shown.
fn changed(mut end: End, change: impl Fn(&mut Vec<Stored>)) -> End {
    change(end.partitions[0].streams.get_mut("s").unwrap());
    change(end.shown_streams.get_mut("s").unwrap());
    change(&mut end.shown_log);
    end
}

fn has(violations: &[Violation], wanted: fn(&Violation) -> bool) -> bool {
    violations.iter().any(wanted)
}

macro_rules! assert_found {
    ($pattern:pat, $calls:expr, $end:expr) => {
        let violations = check(&$calls, &$end);
        assert!(has(&violations, |violation| matches!(violation, $pattern)), "{violations:?}");
    };
}

#[test]
fn a_good_history_passes() {
    let [a, b, c, d] = [
        operation(1, Condition::NoStream, "a"),
        operation(2, Condition::Any, "bc"),
        operation(3, Condition::OneOf(vec![0]), "d"),
        operation(4, Condition::Exists, "e"),
    ];
    let again = Outcome::Ok(Told { first_version: 2, version: 3, position: 3, duplicate: true, etag: "\"3\"".into() });
    let calls = [
        call(&a, [0, 10], ok(1, 1)),
        call(&b, [5, 20], Outcome::Unknown),
        call(&c, [5, 20], conflict(3)),
        call(&b, [30, 40], again),
        call(&d, [50, 60], Outcome::Unknown),
    ];
    assert_eq!(check(&calls, &end("abc")), []);
    assert_eq!(check(&calls, &end("abce")), []);
}

#[test]
fn a_lost_append_is_found() {
    let (a, b) = (operation(1, Condition::Any, "a"), operation(2, Condition::Any, "b"));
    let calls = [call(&a, [0, 1], ok(1, 1)), call(&b, [2, 3], ok(2, 2))];
    assert_eq!(
        check(&calls, &end("a")),
        [Violation::Lost { operation: 2, stream: "s".to_owned(), event: 0, version: 2 }]
    );
    assert_found!(Violation::Misplaced { operation: 2, told: 2, found: 1, .. }, calls, end("ba"));
    let other = changed(end("ab"), |events| events[1].content = "B".to_owned());
    assert_found!(Violation::Lost { operation: 2, .. }, calls, other);
    assert_found!(Violation::Stranger { version: 2, .. }, calls, other);
}

#[test]
fn what_is_there_twice_is_found() {
    let a = operation(1, Condition::Any, "a");
    assert_found!(Violation::Double { operation: 1, .. }, [call(&a, [0, 1], ok(1, 1))], end("aa"));
    assert_found!(Violation::Double { operation: 1, .. }, [call(&a, [0, 1], Outcome::Unknown)], end("aa"));
    let b = operation(2, Condition::Any, "b");
    let calls = [call(&a, [0, 1], ok(1, 1)), call(&b, [0, 1], ok(1, 1))];
    assert_found!(Violation::TwoWinners { version: 1, operations: [1, 2], .. }, calls, end("a"));
    let calls = [call(&a, [0, 1], ok(1, 1)), call(&a, [2, 3], ok(2, 2))];
    assert_found!(Violation::AnswersDiffer { operation: 1, .. }, calls, end("a"));
}

#[test]
fn half_of_a_batch_is_found() {
    let a = operation(1, Condition::Any, "abc");
    let calls = [call(&a, [0, 1], Outcome::Unknown)];
    assert_found!(Violation::HalfBatch { there: 2, of: 3, .. }, calls, end("ab"));
    let b = operation(2, Condition::Any, "x");
    let calls = [call(&a, [0, 1], Outcome::Unknown), call(&b, [0, 1], Outcome::Unknown)];
    assert_found!(Violation::Scattered { operation: 1, .. }, calls, end("abxc"));
    assert_found!(Violation::Scattered { operation: 1, .. }, calls, end("acb"));
}

#[test]
fn what_was_refused_but_is_there_is_found() {
    let a = operation(1, Condition::OneOf(vec![0]), "a");
    let refused = |code: &str| Outcome::Refused { status: 503, code: code.to_owned(), current: None };
    assert_found!(Violation::RefusedButThere { .. }, [call(&a, [0, 1], conflict(0))], end("a"));
    assert_found!(Violation::RefusedButThere { .. }, [call(&a, [0, 1], refused("overloaded"))], end("a"));
    // A conflict after a lost answer says that nothing was done: a false one is found.
    let calls = [call(&a, [0, 1], Outcome::Unknown), call(&a, [2, 3], conflict(1))];
    assert_found!(Violation::RefusedButThere { .. }, calls, end("a"));
    // That the service could not do it now says nothing of the call before.
    let calls = [call(&a, [0, 1], Outcome::Unknown), call(&a, [2, 3], refused("storage-unavailable"))];
    assert_eq!(check(&calls, &end("a")), []);
}

#[test]
fn a_broken_condition_is_found() {
    let first = operation(1, Condition::Any, "a");
    for condition in [Condition::NoStream, Condition::OneOf(vec![0, 2])] {
        let calls = [call(&first, [0, 9], ok(1, 1)), call(&operation(2, condition, "b"), [0, 9], ok(2, 2))];
        assert_found!(Violation::ConditionBroken { operation: 2, first_version: 2, .. }, calls, end("ab"));
    }
    let calls = [call(&operation(1, Condition::Exists, "a"), [0, 1], Outcome::Unknown)];
    assert_found!(Violation::ConditionBroken { operation: 1, first_version: 1, .. }, calls, end("a"));
}

#[test]
fn an_append_before_what_was_known_is_found() {
    let (a, b) = (operation(1, Condition::Any, "a"), operation(2, Condition::Any, "b"));
    let calls = [call(&a, [0, 1], ok(2, 2)), call(&b, [2, 3], ok(1, 1))];
    assert_found!(Violation::BackInTime { operation: 2, first_version: 1, known: 2, .. }, calls, end("ba"));
    let calls = [call(&a, [0, 2], ok(2, 2)), call(&b, [2, 3], ok(1, 1))];
    assert_eq!(check(&calls, &end("ba")), [], "they overlap");
}

#[test]
fn a_gap_is_found() {
    let calls = [call(&operation(1, Condition::Any, "a"), [0, 1], Outcome::Unknown)];
    let gap = changed(end("a"), |events| events[0].version = 2);
    assert_found!(Violation::Gap { expected: 1, found: 2, .. }, calls, gap);
}

#[test]
fn a_wrong_answer_is_found() {
    let a = operation(1, Condition::Any, "a");
    let told = |version, position, etag: &str| {
        Outcome::Ok(Told { first_version: 1, version, position, duplicate: false, etag: etag.to_owned() })
    };
    for outcome in [told(2, 1, "\"2\""), told(1, 2, "\"1\""), told(1, 1, "\"2\"")] {
        assert_found!(Violation::WrongAnswer { operation: 1, .. }, [call(&a, [0, 1], outcome)], end("a"));
    }
}

#[test]
fn a_log_that_differs_is_found() {
    let calls = [call(&operation(1, Condition::Any, "ab"), [0, 1], ok(1, 2))];
    let log = |change: fn(&mut Vec<Pointer>)| {
        let mut end = end("ab");
        change(&mut end.partitions[0].log);
        end
    };
    assert_found!(Violation::NotInLog { version: 2, .. }, calls, log(|log| log.truncate(1)));
    assert_found!(Violation::LogGap { expected: 2, found: 3, .. }, calls, log(|log| log[1].position = 3));
    assert_found!(Violation::DanglingPointer { .. }, calls, log(|log| log[1].version = 3));
    assert_found!(Violation::DanglingPointer { .. }, calls, log(|log| log.push(log[1].clone())));
    assert_found!(Violation::WrongPosition { .. }, calls, log(|log| log[1].position = 3));
    let swapped = log(|log| {
        log.swap(0, 1);
        (log[0].position, log[1].position) = (1, 2);
    });
    assert_found!(Violation::LogOrder { version: 1, after: 2, .. }, calls, swapped);
}

#[test]
fn a_service_that_shows_something_else_is_found() {
    let calls = [call(&operation(1, Condition::Any, "ab"), [0, 1], ok(1, 2))];
    let mut shown = end("ab");
    shown.shown_streams.get_mut("s").unwrap()[1].content = "B".to_owned();
    assert_found!(Violation::ShownStreamDiffers { version: 2, .. }, calls, shown);
    let mut shown = end("ab");
    shown.shown_log.pop();
    assert_found!(Violation::ShownLogDiffers { position: 2, .. }, calls, shown);
}
