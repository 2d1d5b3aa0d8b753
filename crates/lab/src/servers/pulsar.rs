//! A Pulsar broker with its bookie and its metadata in one Java process, for a source with `mq.type: pulsar`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ports::free_port;
use super::process::{self, Process};
use super::pulsar_jars;
use crate::http;
use crate::progress::Progress;

/// 10 to 20 s on two cores when nothing else runs.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// A broker started by us. Dropping it kills it; its folder stays.
#[derive(Debug)]
pub struct Pulsar {
    dir: PathBuf,
    jars: PathBuf,
    broker: u16,
    admin: u16,
    bookie: u16,
    process: Option<Process>,
}

impl Pulsar {
    /// Downloads Pulsar if it is not cached, writes its configuration, starts it and waits until it takes topics.
    /// `more`: lines of `standalone.conf`.
    ///
    /// # Errors
    /// No Java or Maven, or it does not come up; the message has the last lines of its log.
    pub async fn start(dir: impl Into<PathBuf>, more: &str, progress: &Progress) -> Result<Self> {
        let jars = pulsar_jars::ensure(progress).await?;
        let dir = dir.into();
        for folder in ["conf", "logs", "data"] {
            let folder = dir.join(folder);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("create {}", folder.display()))?;
        }
        let mut pulsar = Self {
            dir: dir.canonicalize()?,
            jars,
            broker: free_port()?,
            admin: free_port()?,
            bookie: free_port()?,
            process: None,
        };
        let conf = format!(
            "brokerServicePort={}\nwebServicePort={}\n{CONF}{more}\n",
            pulsar.broker, pulsar.admin
        );
        std::fs::write(pulsar.conf("standalone.conf"), conf)?;
        std::fs::write(pulsar.conf("log4j2.xml"), LOG4J)?;
        std::fs::write(pulsar.conf("ClearStale.java"), CLEAR_STALE)?;
        pulsar.launch(progress).await?;
        Ok(pulsar)
    }

    async fn launch(&mut self, progress: &Progress) -> Result<()> {
        let what = format!("start Pulsar {}", pulsar_jars::VERSION);
        progress.begin(&what);
        let mut java = self.java();
        java.args(["-Xms256m", "-Xmx768m", "-XX:MaxDirectMemorySize=512m"])
            .args(["-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError"])
            .args(OPENED.iter().flat_map(|p| ["--add-opens", *p]))
            .args(PROPERTIES)
            .args(["-cp", &format!("{}/*", self.jars.display())])
            .arg("org.apache.pulsar.PulsarStandaloneStarter")
            .args(["--config", "conf/standalone.conf"])
            .args(["--metadata-dir", "data/metadata"])
            .args(["--bookkeeper-dir", "data/bookkeeper"])
            .args(["--bookkeeper-port", &self.bookie.to_string()])
            .args(["--num-bookies", "1", "-nfw", "-nss", "-a", "127.0.0.1"]);
        let process = Process::spawn("Pulsar", &mut java, &self.log())
            .context("Java 17 or newer has to be installed for a Pulsar source (Debian: apt install openjdk-17-jdk-headless)")?;
        self.process = Some(process);
        let end = Instant::now() + START_DEADLINE;
        while !self.is_ready().await {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!(
                    "Pulsar ended with {status} while starting:\n{}",
                    self.last_words()
                );
            }
            if Instant::now() >= end {
                bail!(
                    "Pulsar is not ready after {START_DEADLINE:?}:\n{}",
                    self.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        progress.done(&what);
        Ok(())
    }

    fn java(&self) -> Command {
        let mut java = Command::new("java");
        java.current_dir(&self.dir)
            .arg("-Dlog4j.configurationFile=conf/log4j2.xml");
        java
    }

    /// The namespace is there, and the broker owns it.
    async fn is_ready(&self) -> bool {
        let ask = |path: &'static str| {
            let address = format!("127.0.0.1:{}", self.admin);
            async move { http::get(&address, path, Duration::from_secs(5)).await }
        };
        ask("/admin/v2/namespaces/public")
            .await
            .is_ok_and(|r| r.status == 200 && r.body.contains("\"public/default\""))
            && ask("/admin/v2/persistent/public/default")
                .await
                .is_ok_and(|r| r.status == 200)
    }

    fn last_words(&self) -> String {
        let own = process::tail(&self.dir.join("logs/pulsar.log"), 20);
        format!("{}\n{own}", process::tail(&self.log(), 20))
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

    /// Starts it again on the same data and ports (kills it first if it runs).
    ///
    /// # Errors
    /// As [`Pulsar::start`].
    pub async fn restart(&mut self, progress: &Progress) -> Result<()> {
        self.kill9().await?;
        self.clear_stale(progress).await;
        self.launch(progress).await
    }

    /// After a kill -9 the metadata still hold the dead broker's ephemeral nodes, for there is no session that could
    /// expire, and bookie and broker have been seen to fight over one without end. To list the tree once from a store
    /// of another instance deletes them.
    async fn clear_stale(&self, progress: &Progress) {
        let mut java = self.java();
        java.args(["-cp", &format!("{}/*", self.jars.display())])
            .arg(self.conf("ClearStale.java"))
            .arg(self.dir.join("data/metadata"))
            .stdin(Stdio::null());
        let run = tokio::process::Command::from(java)
            .kill_on_drop(true)
            .output();
        let failed = match tokio::time::timeout(Duration::from_secs(60), run).await {
            Ok(Ok(output)) if output.status.success() => return,
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "not done within a minute".to_owned(),
        };
        // It may start all the same.
        progress.line(&format!(
            "Pulsar's metadata were not cleared (that needs a JDK): {failed}"
        ));
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

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|p| matches!(p.ended(), Ok(None)))
    }

    /// From now on dropping it leaves it running.
    pub fn leave_running(&mut self) {
        if let Some(process) = &mut self.process {
            process.leave_running();
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `pulsar://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("pulsar://127.0.0.1:{}", self.broker)
    }

    pub fn port(&self) -> u16 {
        self.broker
    }

    pub fn admin_port(&self) -> u16 {
        self.admin
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.dir.join("conf").join(name)
    }

    fn log(&self) -> PathBuf {
        self.dir.join("logs/stdout.log")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What Pulsar's own start script opens to its libraries.
const OPENED: &[&str] = &[
    "java.base/java.io=ALL-UNNAMED",
    "java.base/java.util.zip=ALL-UNNAMED",
    "java.base/java.nio=ALL-UNNAMED",
    "java.base/jdk.internal.misc=ALL-UNNAMED",
    "java.base/sun.net=ALL-UNNAMED",
    "java.base/java.lang=ALL-UNNAMED",
    "java.management/sun.management=ALL-UNNAMED",
    "jdk.management/com.sun.management.internal=ALL-UNNAMED",
    "java.base/jdk.internal.platform=ALL-UNNAMED",
];

const PROPERTIES: &[&str] = &[
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.leakDetectionLevel=disabled",
    "-Dpulsar.allocator.exit_on_oom=true",
    "-Dbookkeeper.metadata.bookie.drivers=org.apache.pulsar.metadata.bookkeeper.PulsarMetadataBookieDriver",
    "-Dbookkeeper.metadata.client.drivers=org.apache.pulsar.metadata.bookkeeper.PulsarMetadataClientDriver",
    "-Dlog4j.shutdownHookEnabled=false",
];

/// Broker and bookie read the same file. A producer that comes back after a restart sends again what was not
/// acknowledged: with deduplication none of it is in the log twice. Topics without a reader or writer are kept (else they go after a minute), and
/// messages for a week; the journal is synced, because it has to survive kill -9; `allowEphemeralPorts` is what makes
/// `--bookkeeper-port` count.
const CONF: &str = "\
clusterName=standalone
bindAddress=127.0.0.1
advertisedAddress=127.0.0.1
managedLedgerDefaultEnsembleSize=1
managedLedgerDefaultWriteQuorum=1
managedLedgerDefaultAckQuorum=1
managedLedgerCacheSizeMB=32
brokerDeduplicationEnabled=true
brokerDeleteInactiveTopicsEnabled=false
defaultRetentionTimeInMinutes=10080
defaultRetentionSizeInMB=-1
allowAutoTopicCreation=true
allowAutoTopicCreationType=non-partitioned
defaultNumberOfNamespaceBundles=1
loadBalancerEnabled=false
webSocketServiceEnabled=false
functionsWorkerEnabled=false
systemTopicEnabled=false
topicLevelPoliciesEnabled=false
transactionCoordinatorEnabled=false
numHttpServerThreads=8
allowEphemeralPorts=true
allowLoopback=true
listeningInterface=lo
httpServerEnabled=false
ledgerStorageClass=org.apache.bookkeeper.bookie.storage.ldb.DbLedgerStorage
dbStorage_writeCacheMaxSizeMb=32
dbStorage_readAheadCacheMaxSizeMb=16
dbStorage_rocksDB_blockCacheSize=8388608
journalSyncData=true
journalWriteData=true
journalFlushWhenQueueEmpty=true
journalPreAllocSizeMB=4
journalMaxSizeMB=128
journalMaxBackups=1
diskUsageThreshold=0.98
diskUsageWarnThreshold=0.95
gcWaitTime=900000
";

const LOG4J: &str = r#"<Configuration status="WARN"><Appenders>
  <RollingFile name="F" fileName="logs/pulsar.log" filePattern="logs/pulsar-%i.log">
    <PatternLayout pattern="%d{ISO8601} [%t] %-5p %c{1} - %m%n"/>
    <SizeBasedTriggeringPolicy size="20MB"/><DefaultRolloverStrategy max="3"/></RollingFile>
</Appenders><Loggers><Root level="info"><AppenderRef ref="F"/></Root></Loggers></Configuration>
"#;

const CLEAR_STALE: &str = r#"import org.apache.pulsar.metadata.api.*;

public class ClearStale {
  static void walk(MetadataStore s, String p) throws Exception {
    for (String c : s.getChildren(p).get()) walk(s, (p.equals("/") ? "" : p) + "/" + c);
  }

  public static void main(String[] a) throws Exception {
    MetadataStore s = MetadataStoreFactory.create("rocksdb://" + a[0], MetadataStoreConfig.builder().build());
    walk(s, "/");
    Thread.sleep(300);
    walk(s, "/");
    Thread.sleep(200);
    s.close();
    System.exit(0);
  }
}
"#;
