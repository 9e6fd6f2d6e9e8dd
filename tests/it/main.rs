//! Black-box tests: the service on a real Redis, spoken to over HTTP. One binary, a file a subject.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests: a panic is how they fail")]
#![allow(clippy::print_stdout, reason = "tests: shown with those that fail")]

#[macro_use]
mod app;
#[macro_use]
mod gateway;

mod access;
mod access_files;
mod access_jwt;
mod access_program;
mod append;
mod backup;
mod base_path;
mod caller;
mod checker;
mod checker_test;
mod cluster;
mod cluster_change;
mod cluster_set;
mod consumers;
mod container;
mod deploy;
mod descriptors;
mod doctor;
mod end;
mod faults;
mod feed;
mod feeds;
mod feeds_edge;
mod feeds_resume;
mod gateways;
mod gateways_faults;
mod group_model;
mod group_model_check;
mod group_model_operator;
mod group_model_size;
mod group_model_state;
mod group_model_steps;
mod groups;
mod groups_contract;
mod groups_deliver;
mod groups_parked;
mod groups_parked_size;
mod groups_race;
mod groups_race_judge;
mod groups_real;
mod groups_redis;
mod groups_resource;
mod groups_wait;
mod groups_wakeup;
#[cfg(target_os = "linux")]
mod guard;
mod history;
mod http2;
mod import_export;
mod input;
mod input_answers;
mod input_headers;
mod input_json;
mod input_limits;
mod input_paths;
mod input_wire;
mod kill;
#[cfg(target_os = "linux")]
mod kill_service;
mod load;
mod log;
mod lost_calls;
mod manual;
mod metrics;
mod migrations;
mod nodes;
mod openapi;
mod polls;
mod program;
mod proxy;
mod rates;
mod read;
mod readme;
mod record;
mod redis_server;
mod redis_tls;
mod retry;
mod router;
mod sentinel;
mod slow;
mod tail;
mod tidy;
mod tls;
mod traces;
mod verify;
