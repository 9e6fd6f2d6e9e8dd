//! Real gateways in front of the service, run with the configurations in `deploy/`.

use std::{
    env, fs,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use tempfile::TempDir;

use crate::{
    app::{TestApp, TestConfig, TestRedis, eventually, free_address},
    tidy::root,
};

/// Declares a test that runs with each gateway that is there.
macro_rules! test_gateways {
    ($(#[$meta:meta])* async fn $name:ident($gateway:ident) $body:block) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            use $crate::gateway::Kind;

            async fn run($gateway: Kind) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nginx() {
                if Kind::Nginx.is_there() {
                    run(Kind::Nginx).await;
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn haproxy() {
                if Kind::Haproxy.is_there() {
                    run(Kind::Haproxy).await;
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn caddy() {
                if Kind::Caddy.is_there() {
                    run(Kind::Caddy).await;
                }
            }
        }
    };
}

/// What the configurations say that the service's `--base-path` is.
pub const BASE: &str = "/events-store";

/// A gateway's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Haproxy,
    Caddy,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// Its path; Debian puts some where only root looks.
    fn program(self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        env::split_paths(&path).chain(system).map(|folder| folder.join(self.name())).find(|program| program.is_file())
    }

    /// Not every machine has every gateway: its tests are left out then, and say so.
    pub fn is_there(self) -> bool {
        let there = self.program().is_some();
        if !there {
            eprintln!("SKIPPED: {} is not there; scripts/ensure-gateways.sh installs it", self.name());
        }
        there
    }

    /// Its file in `deploy/`, with what users fill in: where it listens, and the addresses of the instances.
    fn configuration(self, listen: SocketAddr, instances: [&str; 2]) -> String {
        let file = ["nginx.conf", "haproxy.cfg", "Caddyfile"][self as usize];
        let text = fs::read_to_string(root().join("deploy").join(file)).unwrap();
        let listens = match self {
            Self::Nginx | Self::Haproxy => vec![("127.0.0.1:8080".to_owned(), listen.to_string())],
            Self::Caddy => vec![
                (":8080 {".to_owned(), format!(":{} {{", listen.port())),
                ("bind 127.0.0.1".to_owned(), format!("bind {}", listen.ip())),
            ],
        };
        let serves = ["127.0.0.1:7070", "127.0.0.1:7071"].map(str::to_owned).into_iter();
        let serves = serves.zip(instances.map(str::to_owned));
        listens.into_iter().chain(serves).fold(text, |text, (placeholder, address)| {
            assert!(text.contains(&placeholder), "{file}: {placeholder}");
            text.replace(&placeholder, &address)
        })
    }

    /// Runs it in the foreground as one process, so that nothing is left when it is killed.
    fn command(self, folder: &Path, configuration: &Path) -> Command {
        let mut command = Command::new(self.program().unwrap());
        match self {
            Self::Nginx => {
                // What the distribution's nginx.conf says around it.
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("{what}_temp_path {}/{what};", folder.display()));
                let main = format!(
                    "daemon off; master_process off; pid {0}/pid; events {{}}\n\
                     http {{ access_log off; {1} include {2}; }}",
                    folder.display(),
                    temporary.concat(),
                    configuration.display()
                );
                fs::write(folder.join("main.conf"), main).unwrap();
                command.arg("-p").arg(folder).arg("-c").arg(folder.join("main.conf")).args(["-e", "stderr"]);
            }
            Self::Haproxy => {
                command.arg("-db").arg("-f").arg(configuration);
            }
            Self::Caddy => {
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(configuration);
                command.env("HOME", folder).env("XDG_DATA_HOME", folder).env("XDG_CONFIG_HOME", folder);
            }
        }
        command
    }
}

/// A gateway that runs; killed when dropped.
pub struct Gateway {
    pub url: String,
    child: Child,
    folder: TempDir,
}

impl Gateway {
    /// Starts one before two instances (`host:port`). `edit` may change the configuration further.
    pub async fn start(kind: Kind, instances: [&str; 2], edit: impl Fn(String) -> String) -> Self {
        let folder = TempDir::new().unwrap();
        let listen = free_address();
        let configuration = folder.path().join("configuration");
        fs::write(&configuration, edit(kind.configuration(listen, instances))).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = kind.command(folder.path(), &configuration);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let mut gateway = Self { url: format!("http://{listen}{BASE}"), child, folder };
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let ready = format!("{}/readyz", gateway.url);
        eventually("the gateway is ready", async || {
            assert_eq!(gateway.child.try_wait().unwrap(), None, "{kind:?} has ended");
            client.get(&ready).send().await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        gateway
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

/// Two instances on one Redis behind a gateway.
pub struct Behind {
    /// The first instance; its address is the gateway's.
    pub app: TestApp,
    /// The second; its address is its own.
    pub other: TestApp,
    _gateway: Gateway,
}

impl Behind {
    pub async fn start(kind: Kind) -> Self {
        Self::start_with(kind, |_| {}, |text| text).await
    }

    /// `change` may set what is not the default of the instances, `edit` change the gateway's configuration.
    pub async fn start_with(kind: Kind, change: impl Fn(&mut TestConfig), edit: impl Fn(String) -> String) -> Self {
        let redis = TestRedis::start().await;
        let (mut app, other) = instances(&redis, change).await;
        let gateway = Gateway::start(kind, [&host(&app), &host(&other)], edit).await;
        app.url.clone_from(&gateway.url);
        Self { app, other, _gateway: gateway }
    }
}

/// Two instances below the base path, each with its own address.
pub async fn instances(redis: &Arc<TestRedis>, change: impl Fn(&mut TestConfig)) -> (TestApp, TestApp) {
    let start = async || {
        let set = |config: &mut TestConfig| {
            BASE.clone_into(&mut config.base_path);
            change(config);
        };
        let mut app = TestApp::start_with(Arc::clone(redis), 1, set).await;
        app.url.push_str(BASE);
        app
    };
    (start().await, start().await)
}

/// `host:port` of an instance.
pub fn host(app: &TestApp) -> String {
    app.address().strip_suffix(BASE).unwrap().to_owned()
}
