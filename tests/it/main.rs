//! Black-box tests: the service on a real Redis, spoken to over HTTP. One binary, a file a subject.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests: a panic is how they fail")]

#[macro_use]
mod app;

mod append;
mod import_export;
