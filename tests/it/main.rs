//! Black-box tests: the service on a real Redis, spoken to over HTTP. One binary, a file a subject.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests: a panic is how they fail")]
#![allow(clippy::print_stdout, reason = "tests: shown with those that fail")]

#[macro_use]
mod app;

mod append;
mod checker;
mod checker_test;
mod end;
mod history;
mod kill;
#[cfg(target_os = "linux")]
mod kill_service;
mod load;
mod lost_calls;
mod proxy;
mod record;
