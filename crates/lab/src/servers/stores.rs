//! Real servers for the store of milvus-cdc: etcd, MariaDB and PostgreSQL from Debian's packages, each with a folder
//! and ports of its own; plain, or with TLS.

mod tls;

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, User};
use tempfile::TempDir;

pub use self::tls::ServerTls;
use super::{Process, free_port, process};

/// Cold, on two cores that others use as well.
const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// The user, and the database, of the SQL servers.
pub const USER: &str = "cdc";
/// The password of that user.
pub const PASSWORD: &str = "p@ss/w:rd";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    Etcd,
    Mariadb,
    Postgres,
}

impl StoreKind {
    /// The Debian package.
    pub fn package(self) -> &'static str {
        match self {
            StoreKind::Etcd => "etcd-server",
            StoreKind::Mariadb => "mariadb-server",
            StoreKind::Postgres => "postgresql",
        }
    }
}

/// One running server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct StoreServer {
    kind: StoreKind,
    port: u16,
    peer_port: u16,
    /// Where an etcd with TLS says without it how it is.
    health_port: u16,
    tls: Option<ServerTls>,
    process: Option<Process>,
    /// How often its log said that it was up before this start.
    ups: usize,
    dir: TempDir,
}

impl StoreServer {
    /// # Errors
    /// The package is not installed, or the server does not come up; the message has the last lines of its log.
    pub async fn start(kind: StoreKind) -> Result<Self> {
        Self::start_as(kind, None).await
    }

    /// One that takes nobody without TLS.
    ///
    /// # Errors
    /// As of `start`.
    pub async fn start_secured(kind: StoreKind, tls: ServerTls) -> Result<Self> {
        Self::start_as(kind, Some(tls)).await
    }

    async fn start_as(kind: StoreKind, tls: Option<ServerTls>) -> Result<Self> {
        // Directly below the temporary folder: the server's user has to get there.
        let dir = tempfile::Builder::new()
            .prefix("milvus-cdc-store-")
            .tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let mut server = Self {
            kind,
            port: free_port()?,
            peer_port: free_port()?,
            health_port: free_port()?,
            tls,
            process: None,
            ups: 0,
            dir,
        };
        server.prepare()?;
        server.write_tls()?;
        server.restart().await?;
        Ok(server)
    }

    /// Makes the data folder, with a user for us.
    fn prepare(&self) -> Result<()> {
        let data = self.data();
        std::fs::create_dir(&data)?;
        match self.kind {
            StoreKind::Etcd => Ok(()),
            StoreKind::Mariadb => {
                let mut command = self.command("mariadb-install-db")?;
                command
                    .arg("--no-defaults")
                    .arg(format!("--datadir={}", data.display()))
                    .args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
                run(command)?;
                let init = format!(
                    "CREATE DATABASE IF NOT EXISTS {USER};\n\
                     CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'{};\n\
                     GRANT ALL ON {USER}.* TO '{USER}'@'%';\n",
                    self.mariadb_require()
                );
                std::fs::write(self.dir.path().join("init.sql"), init)?;
                Ok(())
            }
            StoreKind::Postgres => {
                let password = self.dir.path().join("password");
                std::fs::write(&password, PASSWORD)?;
                if let Some((uid, gid)) = other_user()? {
                    chown(&data, Some(uid), Some(gid))?;
                }
                let mut command = self.command("initdb")?;
                command
                    .arg("--pgdata")
                    .arg(&data)
                    .args(["--username", USER, "--auth", "scram-sha-256", "--no-sync"])
                    .args(["--encoding", "UTF8", "--locale", "C.UTF-8"])
                    .arg("--pwfile")
                    .arg(&password);
                run(command)
            }
        }
    }

    /// Starts it again with the same data (kills it first if it runs) and waits until it takes connections.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9().await?;
        self.ups = self.said_to_be_up();
        let (port, data) = (self.port.to_string(), self.data());
        let mut command = match self.kind {
            StoreKind::Etcd => {
                let (client, peer) = (
                    self.etcd_url("127.0.0.1"),
                    format!("http://127.0.0.1:{}", self.peer_port),
                );
                let mut command = self.command("etcd")?;
                command
                    .args(["--name", "store", "--logger", "zap", "--log-level", "warn"])
                    .arg("--data-dir")
                    .arg(&data)
                    .args(["--listen-client-urls", &client])
                    .args(["--advertise-client-urls", &client])
                    .args(["--listen-peer-urls", &peer])
                    .args(["--initial-advertise-peer-urls", &peer])
                    .args(["--initial-cluster", &format!("store={peer}")]);
                command
            }
            StoreKind::Mariadb => {
                let dir = self.dir.path();
                let mut command = self.command("mariadbd")?;
                command
                    .arg("--no-defaults")
                    .arg(format!("--datadir={}", data.display()))
                    .arg(format!("--socket={}", dir.join("s.sock").display()))
                    .arg(format!("--pid-file={}", dir.join("pid").display()))
                    .arg(format!("--init-file={}", dir.join("init.sql").display()))
                    .args(["--bind-address=127.0.0.1", "--port", &port]);
                if Uid::effective().is_root() {
                    command.arg("--user=root");
                }
                command
            }
            StoreKind::Postgres => {
                let mut command = self.command("postgres")?;
                command
                    .arg("-D")
                    .arg(&data)
                    .args(["-h", "127.0.0.1", "-p", &port, "-k", ""]);
                command
            }
        };
        self.add_tls(&mut command);
        self.process = Some(Process::spawn(
            self.kind.package(),
            &mut command,
            &self.log(),
        )?);
        self.wait().await
    }

    async fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                let words = process.last_lines(30);
                bail!(
                    "{} ended with {status} while starting; its last words:\n{words}",
                    self.kind.package()
                );
            }
            if self.is_up().await {
                return Ok(());
            }
            if Instant::now() >= end {
                let words = process::tail(&self.log(), 30);
                bail!(
                    "{} is not up after {START_DEADLINE:?}; its last words:\n{words}",
                    self.kind.package()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_up(&self) -> bool {
        let address = match (self.kind, &self.tls) {
            (StoreKind::Etcd, Some(_)) => format!("127.0.0.1:{}", self.health_port),
            _ => format!("127.0.0.1:{}", self.port),
        };
        match self.kind {
            StoreKind::Etcd => crate::http::get(&address, "/health", Duration::from_secs(2))
                .await
                .is_ok_and(|reply| reply.body.contains("true")),
            // It takes connections and lets them wait until it is ready.
            StoreKind::Mariadb => tokio::net::TcpStream::connect(&address).await.is_ok(),
            // It takes connections and refuses them until it is ready.
            StoreKind::Postgres => self.said_to_be_up() > self.ups,
        }
    }

    fn said_to_be_up(&self) -> usize {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.matches("ready to accept connections").count()
    }

    /// A command of the package, to be run as a user the server accepts.
    fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(find(name, self.kind)?);
        command.current_dir(self.dir.path());
        if self.kind == StoreKind::Postgres
            && let Some((uid, gid)) = other_user()?
        {
            command.uid(uid).gid(gid);
        }
        if self.kind == StoreKind::Mariadb
            && name.ends_with("install-db")
            && Uid::effective().is_root()
        {
            command.arg("--user=root");
        }
        Ok(command)
    }

    /// SIGTERM: everything is in its files afterwards.
    ///
    /// # Errors
    /// It cannot be stopped.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.stop(STOP_PATIENCE).await?;
        }
        Ok(())
    }

    /// SIGKILL. Does nothing if it does not run.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill9().await?;
        }
        Ok(())
    }

    /// Where it writes.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// `http://…` of an etcd, the DSN in the Go form of a MariaDB, `postgres://…`.
    pub fn url(&self) -> String {
        self.url_of("127.0.0.1", PASSWORD)
    }

    /// The same by another name of this machine, and with this password where there is one in it. Of a server with TLS
    /// `https://…`; in the others nothing says so.
    pub fn url_of(&self, host: &str, password: &str) -> String {
        let port = self.port;
        match self.kind {
            StoreKind::Etcd => self.etcd_url(host),
            StoreKind::Mariadb => {
                format!("{USER}:{password}@tcp({host}:{port})/{USER}?charset=utf8")
            }
            // The database every server has.
            StoreKind::Postgres => {
                let password = password.replace('@', "%40").replace('/', "%2F");
                let password = password.replace(':', "%3A");
                format!("postgres://{USER}:{password}@{host}:{port}/postgres")
            }
        }
    }

    fn etcd_url(&self, host: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{host}:{}", self.port)
    }

    /// `metaStoreConfig` of a milvus-cdc with its store here, below `root`.
    pub fn yaml(&self, root: &str) -> String {
        let (kind, place) = match self.kind {
            StoreKind::Etcd => ("etcd", format!("etcd: {{address: ['{}']}}", self.url())),
            StoreKind::Mariadb => ("mysql", format!("mysqlSourceUrl: '{}'", self.url())),
            StoreKind::Postgres => ("postgres", format!("postgresSourceUrl: '{}'", self.url())),
        };
        format!("metaStoreConfig:\n  storeType: {kind}\n  rootPath: {root}\n  {place}\n")
    }
}

/// The program, wherever Debian puts it.
fn find(name: &str, kind: StoreKind) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/bin", "/usr/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|file| file.is_file())
        .with_context(|| {
            let package = kind.package();
            format!("there is no {name} on this machine: apt-get install -y --no-install-recommends {package}")
        })
}

/// PostgreSQL does not run as root: the user of its package, if that is what we are.
fn other_user() -> Result<Option<(u32, u32)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name("postgres")?
        .context("there is no user postgres on this machine, which the package postgresql makes")?;
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}

fn run(mut command: Command) -> Result<()> {
    let name = command.get_program().to_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", Path::new(&name).display()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let program = Path::new(&name).file_name().unwrap_or(OsStr::new("it"));
    ensure!(
        output.status.success(),
        "{}: {}: {said}",
        program.to_string_lossy(),
        output.status
    );
    Ok(())
}
