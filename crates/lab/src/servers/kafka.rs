//! A Kafka broker of one process: from the Maven repository into the user's cache, with KRaft and no ZooKeeper.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::ports::free_port;
use super::process::{self, Process};
use super::wheel::{cache_dir, run};
use crate::progress::Progress;

/// The version of Kafka the laboratory runs.
pub const VERSION: &str = "3.9.1";
/// Any will do: no broker here meets another one.
const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const JAVA: &str =
    "java 17 or newer has to be installed; on Debian: apt install openjdk-17-jre-headless";
const MAVEN: &str = "maven has to be installed, to download Kafka; on Debian: apt install maven";
/// 5 s on two cores when nothing else runs.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// The password of all that is made for a broker with a login.
const PASSWORD: &str = "alice-secret";

/// Packages of one process take turns: the second one finds the cache filled.
static DOWNLOADING: Mutex<()> = Mutex::const_new(());

/// A broker started by us. Dropping it kills it; its folder stays.
#[derive(Debug)]
pub struct Kafka {
    dir: PathBuf,
    jars: PathBuf,
    port: u16,
    secured: Option<u16>,
    process: Option<Process>,
}

/// Where a broker with a login listens, and what it asks for.
#[derive(Debug, Clone)]
pub struct Secured {
    /// `host:port`; `SASL_SSL` with `PLAIN`, `SCRAM-SHA-256` and `SCRAM-SHA-512`.
    pub address: String,
    pub username: &'static str,
    pub password: &'static str,
    /// The certificate to trust, PEM. It names `localhost` and `127.0.0.1`.
    pub ca: PathBuf,
}

impl Kafka {
    /// Downloads the broker if it is not cached, formats its folder if that is new, starts it and waits until it listens.
    /// `port`: a free one if `None`. `secured`: it listens on a second port too, with TLS and a login.
    ///
    /// # Errors
    /// Any of these fails; the message has the last lines of the broker's log, or says what has to be installed.
    pub async fn start(
        dir: impl Into<PathBuf>,
        port: Option<u16>,
        secured: bool,
        progress: &Progress,
    ) -> Result<Self> {
        let jars = ensure(progress).await?;
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut kafka = Self {
            dir: dir.canonicalize()?,
            jars,
            port: port.map_or_else(free_port, Ok)?,
            secured: secured.then(free_port).transpose()?,
            process: None,
        };
        if kafka.secured.is_some() && !kafka.keystore().exists() {
            kafka.make_certificate().await?;
        }
        kafka.configure(free_port()?)?;
        if !kafka.dir.join("data").exists() {
            kafka.format().await?;
        }
        kafka.launch(progress).await?;
        Ok(kafka)
    }

    fn configure(&self, controller: u16) -> Result<()> {
        let (port, dir) = (self.port, self.dir.display());
        let (mut listeners, mut advertised, mut protocols, mut login) = Default::default();
        if let Some(secured) = self.secured {
            listeners = format!(",SECURED://127.0.0.1:{secured}");
            advertised = format!(",SECURED://localhost:{secured}");
            protocols = ",SECURED:SASL_SSL";
            let module = "org.apache.kafka.common.security";
            let scram = format!("{module}.scram.ScramLoginModule required;");
            let of = "listener.name.secured";
            login = format!(
                "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
                 {of}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_alice=\"{PASSWORD}\";\n\
                 {of}.scram-sha-256.sasl.jaas.config={scram}\n\
                 {of}.scram-sha-512.sasl.jaas.config={scram}\n\
                 {of}.ssl.keystore.type=PKCS12\n\
                 {of}.ssl.keystore.location={}\n\
                 {of}.ssl.keystore.password={PASSWORD}\n",
                self.keystore().display(),
            );
        }
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{protocols}\n\
             {login}\
             log.dirs={dir}/data\n\
             num.partitions=1\n\
             offsets.topic.num.partitions=1\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             log.cleaner.dedupe.buffer.size=4194304\n\
             message.max.bytes=33554432\n\
             replica.fetch.max.bytes=33554432\n"
        );
        std::fs::write(self.properties(), properties)?;
        let log4j = "log4j.rootLogger=WARN, stdout\n\
             log4j.appender.stdout=org.apache.log4j.ConsoleAppender\n\
             log4j.appender.stdout.layout=org.apache.log4j.PatternLayout\n\
             log4j.appender.stdout.layout.ConversionPattern=[%d] %p %m (%c)%n\n";
        std::fs::write(self.dir.join("log4j.properties"), log4j)?;
        Ok(())
    }

    fn java(&self) -> Command {
        let mut java = Command::new("java");
        let log4j = self.dir.join("log4j.properties");
        java.arg("-Xmx512m")
            .arg(format!("-Dlog4j.configuration=file:{}", log4j.display()))
            .arg("-cp")
            .arg(format!("{}/*", self.jars.display()));
        java
    }

    async fn format(&self) -> Result<()> {
        let mut java = self.java();
        java.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(self.properties());
        if self.secured.is_some() {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                java.arg("--add-scram")
                    .arg(format!("{mechanism}=[name=alice,password={PASSWORD}]"));
            }
        }
        run(
            java.into(),
            "the format of Kafka's folder",
            JAVA,
            Duration::from_secs(60),
        )
        .await
    }

    async fn make_certificate(&self) -> Result<()> {
        let keytool = async |args: &[&str]| {
            let mut command = Command::new("keytool");
            command
                .args(args)
                .args(["-alias", "kafka", "-storepass", PASSWORD, "-keystore"])
                .arg(self.keystore());
            run(command.into(), "keytool", JAVA, Duration::from_secs(60)).await
        };
        keytool(&[
            "-genkeypair",
            "-keyalg",
            "RSA",
            "-dname",
            "CN=localhost",
            "-ext",
            "SAN=dns:localhost,ip:127.0.0.1",
            "-storetype",
            "PKCS12",
        ])
        .await?;
        let ca = self.dir.join("ca.pem").display().to_string();
        keytool(&["-exportcert", "-rfc", "-file", &ca]).await
    }

    async fn launch(&mut self, progress: &Progress) -> Result<()> {
        let what = format!("start Kafka {VERSION}");
        progress.begin(&what);
        let mut command = self.java();
        command.arg("kafka.Kafka").arg(self.properties());
        command.current_dir(&self.dir);
        let mut process = Process::spawn("kafka", &mut command, &self.log()).context(JAVA)?;
        let end = Instant::now() + START_DEADLINE;
        while TcpStream::connect(self.address()).await.is_err() {
            if let Some(status) = process.ended()? {
                bail!(
                    "Kafka ended with {status} while starting; its last words:\n{}",
                    process.last_lines(30)
                );
            }
            if Instant::now() >= end {
                bail!(
                    "Kafka does not listen after {START_DEADLINE:?}; its last words:\n{}",
                    process::tail(&self.log(), 30)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.process = Some(process);
        progress.done(&what);
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

    /// Starts it again on the same folder and ports (kills it first if it runs).
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn restart(&mut self, progress: &Progress) -> Result<()> {
        self.kill9().await?;
        self.launch(progress).await
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The operating system refuses to tell.
    pub async fn ended(&mut self) -> Result<()> {
        while let Some(process) = &mut self.process {
            if process.wait(Duration::from_secs(1)).await?.is_some() {
                self.process = None;
            }
        }
        Ok(())
    }

    /// From now on dropping it leaves it running.
    pub fn leave_running(&mut self) {
        if let Some(process) = &mut self.process {
            process.leave_running();
        }
    }

    /// `host:port`, without TLS or a login.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The listener with TLS and a login, if it has one.
    pub fn secured(&self) -> Option<Secured> {
        self.secured.map(|port| Secured {
            address: format!("localhost:{port}"),
            username: "alice",
            password: PASSWORD,
            ca: self.dir.join("ca.pem"),
        })
    }

    /// The process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Everything it has printed.
    pub fn log(&self) -> PathBuf {
        self.dir.join("kafka.log")
    }

    fn properties(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    fn keystore(&self) -> PathBuf {
        self.dir.join("kafka.p12")
    }
}

/// The folder with Kafka's jars; downloads them if they are not there yet.
///
/// # Errors
/// No Maven, no network, no space.
async fn ensure(progress: &Progress) -> Result<PathBuf> {
    let _turn = DOWNLOADING.lock().await;
    let cache = cache_dir()?;
    let ready = cache.join(format!("kafka-{VERSION}"));
    if ready.exists() {
        return Ok(ready);
    }
    let work = cache.join(format!("kafka-{VERSION}.{}.part", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let what = format!("download Kafka {VERSION} (46 MB, once)");
    progress.begin(&what);
    let filled = download(&work).await;
    // Another process may have been quicker: then its folder stays and ours goes.
    if filled.is_ok() && std::fs::rename(work.join("jars"), &ready).is_err() && !ready.exists() {
        bail!("cannot move Kafka to {}", ready.display());
    }
    let _ = std::fs::remove_dir_all(&work);
    filled?;
    progress.done(&what);
    Ok(ready)
}

async fn download(work: &Path) -> Result<()> {
    let pom = work.join("pom.xml");
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>"
        )
    };
    let xml = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>lab</groupId><artifactId>lab</artifactId><version>1</version><packaging>pom</packaging>\
         <dependencies>{}{}</dependencies></project>",
        dependency("org.apache.kafka", "kafka_2.13", VERSION),
        dependency("org.slf4j", "slf4j-reload4j", "1.7.36"),
    );
    std::fs::write(&pom, xml)?;
    let mut maven = Command::new("mvn");
    maven
        .args(["-q", "-B", "-f"])
        .arg(&pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", work.join("jars").display()));
    run(
        maven.into(),
        "the download of Kafka with mvn",
        MAVEN,
        Duration::from_secs(900),
    )
    .await
}
