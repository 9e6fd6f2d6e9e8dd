//! Message DB on PostgreSQL, asked in PostgreSQL's own protocol: prepared statements, arguments as text.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use streamkeep::redis_server::AppendFsync;
use uuid::Uuid;

use super::{Peer, Wanted};
use crate::{
    clients::PAGE,
    load::{Client, Turn},
    process::{Server, find, until},
    rows::Target,
    streams::{KIND, Share, data},
};

/// Who runs it: PostgreSQL does not start as root.
const USER: &str = "postgres";
/// Protocol 3.0.
const PROTOCOL: i32 = 3 << 16;
const WRITE: &str = "SELECT message_store.write_message($1, $2, $3, $4::jsonb, $5::jsonb, $6)";
const READ: &str = "SELECT * FROM message_store.get_stream_messages($1, 0, $2)";

pub fn start(wanted: &Wanted) -> Result<Peer, String> {
    let scripts = wanted.message_db.ok_or("Message DB: --message-db does not say where its install.sh is")?;
    let programs = programs().ok_or("Message DB: there is no PostgreSQL (Debian's package postgresql)")?;
    // The temporary folder is root's alone.
    let data = tempfile::TempDir::new().map_err(|error| format!("Message DB: {error}"))?;
    let user = as_user(data.path())?;
    let folder = data.path().join("data").display().to_string();
    let run = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output().map_err(|error| format!("Message DB: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("Message DB: {said}")) }
    };
    let mut initdb = Command::new(user.first().map_or(programs.join("initdb"), PathBuf::from));
    initdb.args(user.iter().skip(1)).args(user.first().map(|_| programs.join("initdb")));
    initdb.args(["-D", &folder, "-A", "trust", "-U", USER, "--no-sync"]);
    run(initdb)?;

    let (sync, level) = match wanted.fsync {
        AppendFsync::Always => ("on", "on disk (synchronous_commit on)"),
        AppendFsync::Everysec => ("off", "in memory, on disk within about 0.6 s (synchronous_commit off)"),
    };
    let postgres = programs.join("postgres").display().to_string();
    let mut words: Vec<String> = user.clone();
    words.push(postgres);
    let server = Server::start(Path::new(&words[0]), |address| {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let sockets = data.path().display().to_string();
        let fixed = ["-D", &folder, "-h", &host, "-p", &port, "-k", &sockets].map(str::to_owned);
        let settings = [
            format!("synchronous_commit={sync}"),
            "max_connections=300".to_owned(),
            "log_min_messages=panic".to_owned(),
        ];
        let settings = settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]);
        words[1..].iter().cloned().chain(fixed).chain(settings).collect()
    })?;
    let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let tool = |program: &Path| {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PGHOST", &host).env("PGPORT", &port).env("PGUSER", USER);
        command.env("PATH", format!("{}:{path}", programs.display()));
        command
    };
    until("PostgreSQL", || Ok(run(tool(&programs.join("pg_isready"))).is_ok()))?;
    let mut install = tool(Path::new("bash"));
    install.arg(scripts.join("install.sh"));
    run(install)?;
    Ok(Peer { target: Target::MessageDb, server: server.with(data), level: level.to_owned() })
}

/// Where PostgreSQL's programs are; Debian keeps them out of PATH.
fn programs() -> Option<PathBuf> {
    // On PATH there may be but a link to one of them.
    let parent = |program: PathBuf| Some(program.canonicalize().ok()?.parent()?.to_owned());
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    versions.sort_by_key(std::fs::DirEntry::file_name);
    let debian = versions.last().map(|version| version.path().join("bin"));
    find("postgres").and_then(parent).or(debian)
}

/// The words before a command that is to be run by another user than root, to whom the folder is given.
fn as_user(folder: &Path) -> Result<Vec<String>, String> {
    if !rustix::process::getuid().is_root() {
        return Ok(Vec::new());
    }
    let setpriv = find("setpriv").ok_or("Message DB: PostgreSQL does not run as root, and there is no setpriv")?;
    let id = |option: &str| -> Option<u32> {
        let output = Command::new("id").args([option, USER]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let (user, group) = id("-u").zip(id("-g")).ok_or(format!("Message DB: there is no user {USER}"))?;
    chown(folder, Some(user), Some(group)).map_err(|error| format!("Message DB: {error}"))?;
    let folder = format!("--chdir={}", folder.display());
    let words = [&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups", "env", &folder];
    Ok(std::iter::once(setpriv.display().to_string()).chain(words.map(str::to_owned)).collect())
}

/// A connection that has one prepared statement. All that is sent before a `Sync` is one transaction.
struct Connection {
    /// What is said before the first request.
    hello: Vec<u8>,
    /// How many more times than after each request the server will be ready.
    greetings: usize,
}

impl Connection {
    fn new(statement: &str) -> Self {
        let mut hello = Vec::new();
        let words =
            ["user", "message_store", "database", "message_store", "options", "-c search_path=message_store,public"];
        let body: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).chain([0]).collect();
        hello.extend_from_slice(&size(8 + body.len()));
        hello.extend_from_slice(&PROTOCOL.to_be_bytes());
        hello.extend_from_slice(&body);
        message(&mut hello, b'P', &[b"w\0", statement.as_bytes(), b"\0\0\0"].concat());
        message(&mut hello, b'S', b"");
        Self { hello, greetings: 2 }
    }

    fn greet(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.hello);
    }

    /// The length of all messages up to that which says that the server is ready for more.
    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let (mut at, mut ready) = (0, 0);
        while ready < self.greetings + 1 {
            let head = input.get(at..at + 5)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            at += 1 + usize::try_from(length).expect("a length fits");
            let whole = input.get(..at)?;
            assert!(head[0] != b'E', "{}", String::from_utf8_lossy(whole));
            ready += usize::from(head[0] == b'Z');
        }
        self.greetings = 0;
        Some(at)
    }
}

/// Binds the arguments and executes.
fn execute(out: &mut Vec<u8>, arguments: &[&str]) {
    let count = u16::try_from(arguments.len()).expect("they are few").to_be_bytes();
    let mut body = [b"\0w\0\0\0", &count[..]].concat();
    for argument in arguments {
        body.extend_from_slice(&u32::try_from(argument.len()).expect("it is short").to_be_bytes());
        body.extend_from_slice(argument.as_bytes());
    }
    body.extend_from_slice(b"\0\0");
    message(out, b'B', &body);
    message(out, b'E', b"\0\0\0\0\0");
}

fn message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&size(4 + body.len()));
    out.extend_from_slice(body);
}

fn size(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("messages are short").to_be_bytes()
}

/// `write_message` with the expected version, as often as there are events, in one transaction.
pub struct Append {
    connection: Connection,
    share: Share,
    events: usize,
}

impl Append {
    pub fn new(share: Share, events: usize) -> Self {
        Self { connection: Connection::new(WRITE), share, events }
    }
}

impl Client for Append {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        let (stream, version) = self.share.take(self.events);
        for next in version..version + self.events as u64 {
            // Versions begin at 0, and -1 is that of no stream.
            let expected = (i128::from(next) - 1).to_string();
            execute(out, &[&Uuid::new_v4().to_string(), &stream, KIND, data(), "{}", &expected]);
        }
        message(out, b'S', b"");
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        self.connection.reply(input)
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}

/// `get_stream_messages`
pub struct Read {
    connection: Connection,
    stream: String,
}

impl Read {
    pub fn new(index: usize) -> Self {
        Self { connection: Connection::new(READ), stream: format!("page-{index:08}") }
    }
}

impl Client for Read {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        execute(out, &[&self.stream, &PAGE.to_string()]);
        message(out, b'S', b"");
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        self.connection.reply(input)
    }

    fn turn(&self) -> Turn {
        Turn::Over(PAGE)
    }
}
