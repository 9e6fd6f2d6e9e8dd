//! Streamkeep: an event store over plain HTTP on ordinary Redis Streams.
//!
//! The map; `ARCHITECTURE.md` has the walks and the reasons.

pub mod cli;
pub mod config;
pub mod http;
pub mod model;
pub mod redis_server;
pub mod store;
pub mod telemetry;
