//! An etcd of its own, with mutual TLS and users.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cdc_lab::servers::{Process, Spec, free_port};
use etcd_client::{Client, ConnectOptions, Permission};
use tonic::transport::ClientTlsConfig;

use super::certs::Files;

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);
pub(crate) const ROOT: &str = "root";

/// Dropping it kills it; its folder stays.
pub(crate) struct Etcd {
    dir: PathBuf,
    files: Files,
    port: u16,
    peer: u16,
    process: Option<Process>,
}

impl Etcd {
    /// Starts it with the server's `files`. Only clients of `files.trusted` may connect.
    pub(crate) async fn start(dir: PathBuf, files: Files, client: ClientTlsConfig) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let (port, peer) = (free_port()?, free_port()?);
        let mut etcd = Self {
            dir,
            files,
            port,
            peer,
            process: None,
        };
        etcd.restart(client).await?;
        Ok(etcd)
    }

    /// `localhost:port`
    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// As [`Etcd::start`], with the data and the ports it has.
    pub(crate) async fn restart(&mut self, client: ClientTlsConfig) -> Result<()> {
        self.stop().await?;
        let mine = format!("https://localhost:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer);
        // Listening wants an IP address.
        let listen = format!("https://127.0.0.1:{}", self.port);
        let mut command = Command::new("etcd");
        command
            .args([
                "--name",
                "default",
                "--client-cert-auth",
                "--unsafe-no-fsync",
            ])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &listen])
            .args(["--advertise-client-urls", &mine])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .arg("--cert-file")
            .arg(&self.files.certificate)
            .arg("--key-file")
            .arg(&self.files.key)
            .arg("--trusted-ca-file")
            .arg(&self.files.trusted);
        let log = self.dir.join("etcd.log");
        let process = Process::spawn("etcd", &mut command, &log);
        self.process = Some(process.context("etcd has to be installed (Debian: etcd-server)")?);
        let end = Instant::now() + START;
        loop {
            let error = match self.is_up(client.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let process = self.process.as_mut().context("it runs")?;
            let ended = process.ended()?;
            if ended.is_some() || Instant::now() >= end {
                bail!(
                    "etcd is not up ({ended:?}): {error:#}; its last words:\n{}",
                    process.last_lines(30)
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A refused login is an answer, too.
    async fn is_up(&self, client: ClientTlsConfig) -> Result<()> {
        let mut client = self.client(client, None).await?;
        let status = tokio::time::timeout(Duration::from_secs(3), client.status());
        status.await??;
        Ok(())
    }

    pub(crate) async fn client(
        &self,
        tls: ClientTlsConfig,
        login: Option<(&str, &str)>,
    ) -> Result<Client> {
        let mut options = ConnectOptions::new().with_tls(tls);
        if let Some((user, password)) = login {
            options = options.with_user(user, password);
        }
        let address = format!("https://{}", self.address());
        Ok(Client::connect([address], Some(options)).await?)
    }

    /// A Milvus that has its metadata here, and these files to get in: of a certificate for [`ROOT`], since etcd takes
    /// the common name for the user, and Milvus 2.3.5 has no setting for a password.
    pub(crate) fn used_by(&self, spec: Spec, files: &Files) -> Spec {
        let path = |path: &Path| path.display().to_string();
        spec.set("etcd.use.embed", "false")
            .set("etcd.endpoints", &self.address())
            .set("etcd.ssl.enabled", "true")
            .set("etcd.ssl.tlsCert", &path(&files.certificate))
            .set("etcd.ssl.tlsKey", &path(&files.key))
            .set("etcd.ssl.tlsCACert", &path(&files.trusted))
    }

    /// From now on it asks who somebody is: root, or `user`, who may do this.
    pub(crate) async fn ask_for_logins(
        &self,
        tls: ClientTlsConfig,
        user: &str,
        password: &str,
        allowed: &[Permission],
    ) -> Result<()> {
        let mut client = self.client(tls, None).await?;
        client.user_add(ROOT, "root-of-the-lab", None).await?;
        client.user_grant_role(ROOT, ROOT).await?;
        const ROLE: &str = "of-the-user";
        client.role_add(ROLE).await?;
        for permission in allowed {
            client
                .role_grant_permission(ROLE, permission.clone())
                .await?;
        }
        client.user_add(user, password, None).await?;
        client.user_grant_role(user, ROLE).await?;
        client.auth_enable().await?;
        Ok(())
    }

    pub(crate) async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.stop(STOP).await?;
        }
        Ok(())
    }

    pub(crate) async fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill9().await?;
        }
        Ok(())
    }
}
