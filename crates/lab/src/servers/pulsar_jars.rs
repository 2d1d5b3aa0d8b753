//! Pulsar's broker: its jars from Maven Central into the user's cache, once.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::wheel::cache_dir;
use crate::progress::Progress;

/// The version of Pulsar the laboratory runs.
pub(super) const VERSION: &str = "3.0.7";

static DOWNLOADING: Mutex<()> = Mutex::const_new(());

/// The folder with all jars; downloads them if it is not there yet.
///
/// # Errors
/// No Maven, no network, no space.
pub(super) async fn ensure(progress: &Progress) -> Result<PathBuf> {
    let _turn = DOWNLOADING.lock().await;
    let cache = cache_dir()?;
    let ready = cache.join(format!("pulsar-{VERSION}"));
    if ready.exists() {
        return Ok(ready);
    }
    let work = cache.join(format!("pulsar-{VERSION}.{}.part", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let what = format!("download Pulsar {VERSION} (180 MB, once)");
    progress.begin(&what);
    let filled = fill(&work).await;
    // Another process may have been quicker: then its folder stays and ours goes.
    if filled.is_ok() && std::fs::rename(work.join("jars"), &ready).is_err() && !ready.exists() {
        bail!("cannot move the jars of Pulsar to {}", ready.display());
    }
    let _ = std::fs::remove_dir_all(&work);
    filled?;
    progress.done(&what);
    Ok(ready)
}

/// Into a folder of its own, the local repository included: a broken download must not look like a whole one.
async fn fill(work: &Path) -> Result<()> {
    std::fs::write(work.join("settings.xml"), SETTINGS)?;
    std::fs::write(work.join("pom.xml"), POM.replace("VERSION", VERSION))?;
    let mut maven = Command::new("mvn");
    maven
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(work.join("pom.xml"))
        .arg("--global-settings")
        .arg(work.join("settings.xml"))
        .arg(format!("-Dmaven.repo.local={}", work.join("m2").display()))
        .arg("org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies")
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", work.join("jars").display()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(900), maven.output())
        .await
        .context("mvn has not downloaded Pulsar within 15 minutes")?
        .context(
            "start mvn: Maven has to be installed for a Pulsar source (Debian: apt install maven)",
        )?;
    if !output.status.success() {
        bail!(
            "mvn could not download Pulsar ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout).trim_end()
        );
    }
    Ok(())
}

/// The other repositories that some poms name (confluent, restlet, snapshots) are not needed. The user's own settings
/// come before these.
const SETTINGS: &str = "<settings><mirrors><mirror><id>nowhere</id><mirrorOf>*,!central</mirrorOf>\
    <url>file:///nonexistent</url></mirror></mirrors></settings>\n";

/// Pulsar's own parent as a list of versions, so that no version range is left; without Kubernetes and etcd.
const POM: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>lab</groupId><artifactId>pulsar-standalone</artifactId><version>1</version><packaging>pom</packaging>
  <dependencyManagement><dependencies>
    <dependency><groupId>org.apache.pulsar</groupId><artifactId>pulsar</artifactId><version>VERSION</version>
      <type>pom</type><scope>import</scope></dependency>
  </dependencies></dependencyManagement>
  <dependencies>
    <dependency><groupId>org.apache.pulsar</groupId><artifactId>pulsar-broker</artifactId><version>VERSION</version>
      <exclusions>
        <exclusion><groupId>io.kubernetes</groupId><artifactId>*</artifactId></exclusion>
        <exclusion><groupId>io.etcd</groupId><artifactId>*</artifactId></exclusion>
        <exclusion><groupId>io.vertx</groupId><artifactId>*</artifactId></exclusion>
      </exclusions></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>2.18.0</version></dependency>
  </dependencies>
</project>
"#;
