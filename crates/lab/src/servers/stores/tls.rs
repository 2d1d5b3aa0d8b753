//! TLS of the stores' servers: they take nobody without it.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{StoreKind, StoreServer, other_user};

/// A server's certificate and key, PEM.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub certificate: String,
    pub key: String,
    /// The authority of the clients' certificates: nobody is taken without one, beside the login.
    pub clients: Option<String>,
}

impl StoreServer {
    /// Other certificates; they count from the next start on.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn set_tls(&mut self, tls: ServerTls) -> Result<()> {
        self.tls = Some(tls);
        self.write_tls()
    }

    pub(super) fn write_tls(&self) -> Result<()> {
        let Some(tls) = &self.tls else {
            return Ok(());
        };
        let clients = tls.clients.as_deref();
        for (name, text) in [
            ("server.pem", Some(tls.certificate.as_str())),
            ("server.key", Some(tls.key.as_str())),
            ("clients.pem", clients),
        ] {
            let Some(text) = text else {
                continue;
            };
            let path = self.pem(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            // PostgreSQL takes no key that others can read.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            if self.kind == StoreKind::Postgres
                && let Some((uid, gid)) = other_user()?
            {
                chown(&path, Some(uid), Some(gid))?;
            }
        }
        if self.kind == StoreKind::Postgres {
            let certificate = match clients {
                Some(_) => " clientcert=verify-ca",
                None => "",
            };
            let rules = format!("hostssl all all 127.0.0.1/32 scram-sha-256{certificate}\n");
            std::fs::write(self.data().join("pg_hba.conf"), rules)?;
        }
        Ok(())
    }

    /// What MariaDB asks of its user.
    pub(super) fn mariadb_require(&self) -> &'static str {
        match self.tls.as_ref().and_then(|tls| tls.clients.as_ref()) {
            Some(_) => " REQUIRE X509",
            None => "",
        }
    }

    pub(super) fn add_tls(&self, command: &mut Command) {
        let Some(tls) = &self.tls else {
            return;
        };
        let file = |name: &str| self.pem(name).display().to_string();
        let (certificate, key) = (file("server.pem"), file("server.key"));
        let clients = tls.clients.as_ref().map(|_| file("clients.pem"));
        match self.kind {
            StoreKind::Etcd => {
                let health = format!("http://127.0.0.1:{}", self.health_port);
                command
                    .args(["--cert-file", &certificate, "--key-file", &key])
                    .args(["--listen-metrics-urls", &health]);
                if let Some(clients) = &clients {
                    command.args(["--client-cert-auth", "--trusted-ca-file", clients]);
                }
            }
            StoreKind::Mariadb => {
                command
                    .arg(format!("--ssl-cert={certificate}"))
                    .arg(format!("--ssl-key={key}"))
                    .arg("--require-secure-transport=ON");
                if let Some(clients) = &clients {
                    command.arg(format!("--ssl-ca={clients}"));
                }
            }
            StoreKind::Postgres => {
                command
                    .args(["-c", "ssl=on"])
                    .args(["-c", &format!("ssl_cert_file={certificate}")])
                    .args(["-c", &format!("ssl_key_file={key}")]);
                if let Some(clients) = &clients {
                    command.args(["-c", &format!("ssl_ca_file={clients}")]);
                }
            }
        }
    }

    fn pem(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
