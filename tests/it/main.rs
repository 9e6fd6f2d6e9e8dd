//! Black-box tests: the service on a real Redis, spoken to over HTTP. One binary, a file a subject.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests: a panic is how they fail")]

#[macro_use]
mod app;

mod append;
mod faults;
mod import_export;
mod input;
mod input_answers;
mod input_headers;
mod input_json;
mod input_limits;
mod input_paths;
mod input_wire;
mod log;
mod migrations;
mod openapi;
mod proxy;
mod read;
mod readme;
mod redis_server;
mod retry;
mod tidy;
