//! Which store there is to be, and opening it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cdc_core::secret::Secret;
use cdc_core::tls::ClientTls;
use sqlx::mysql::MySqlSslMode;

use super::etcd::{EtcdServer, EtcdStore};
use super::seal::{SealKey, Sealed};
use super::{Backend, SharedTaskStore, SqlServer, SqlStore};

#[derive(Clone, PartialEq, Debug)]
pub enum StoreConfig {
    Sqlite(PathBuf),
    Postgres { url: Secret, root: String },
    Mysql { address: MysqlAddress, root: String },
    Etcd(EtcdServer),
}

/// A MySQL or MariaDB as the Go server's driver names it.
#[derive(Clone, Debug)]
pub struct MysqlAddress {
    pub user: String,
    pub password: Secret,
    pub host: String,
    pub port: u16,
    /// In place of host and port.
    pub socket: Option<PathBuf>,
    pub database: String,
    pub tls: MySqlSslMode,
    /// Whom to trust, and who we are: not part of the Go driver's form.
    pub files: ClientTls,
}

impl PartialEq for MysqlAddress {
    fn eq(&self, other: &Self) -> bool {
        // The mode of TLS cannot be compared otherwise.
        let tls = |a: &Self| format!("{:?}", a.tls);
        self.to_string() == other.to_string()
            && self.password == other.password
            && tls(self) == tls(other)
            && self.files == other.files
    }
}

impl fmt::Display for MysqlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Some(socket) => write!(f, "mysql {}@{}", self.user, socket.display())?,
            None => write!(f, "mysql {}@{}:{}", self.user, self.host, self.port)?,
        }
        write!(f, "/{}", self.database)
    }
}

/// Parameters of the Go driver that mean nothing here, or are so of themselves.
const IGNORED: &[&str] = &[
    "allowNativePasswords",
    "allowOldPasswords",
    "charset",
    "checkConnLiveness",
    "clientFoundRows",
    "collation",
    "columnsWithAlias",
    "interpolateParams",
    "loc",
    "maxAllowedPacket",
    "multiStatements",
    "parseTime",
    "readTimeout",
    "rejectReadOnly",
    "timeout",
    "writeTimeout",
];

impl MysqlAddress {
    /// `user:password@tcp(host:port)/database?tls=…`, or `unix(/path)`, as github.com/go-sql-driver/mysql reads it.
    ///
    /// # Errors
    /// What is wrong; nothing of the text is shown, there is a password in it.
    pub fn parse(dsn: &str) -> Result<Self, String> {
        const FORM: &str = "user:password@tcp(host:port)/database expected";
        // A password may hold any of the separators: the last `/` is the database's, the last `@` before it the
        // host's.
        let (before, after) = dsn.rsplit_once('/').ok_or(FORM)?;
        let (login, place) = before.rsplit_once('@').unwrap_or(("", before));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (database, parameters) = after.split_once('?').unwrap_or((after, ""));
        if database.is_empty() {
            return Err(format!("{FORM}; the database is missing"));
        }
        let mut address = Self {
            user: user.to_owned(),
            password: Secret::new(password),
            host: "127.0.0.1".to_owned(),
            port: 3306,
            socket: None,
            database: database.to_owned(),
            tls: MySqlSslMode::Disabled,
            files: ClientTls::default(),
        };
        let place = place.strip_suffix(')').unwrap_or(place);
        match place.split_once('(') {
            None if place.is_empty() || place == "tcp" => {}
            Some(("tcp", host)) => {
                let (name, port) = match host.rsplit_once(':') {
                    Some((name, port)) if !name.is_empty() => (name, port),
                    _ => (host, "3306"),
                };
                address.host = name.trim_matches(['[', ']']).to_owned();
                address.port = port
                    .parse()
                    .map_err(|_| format!("{FORM}; the port is none"))?;
            }
            Some(("unix", path)) => address.socket = Some(path.into()),
            _ => return Err(format!("{FORM}, or user:password@unix(/path)/database")),
        }
        for pair in parameters.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (key, value) {
                ("tls", value) => address.tls = tls_mode(value)?,
                (key, _) if IGNORED.contains(&key) => {}
                (key, _) => {
                    let key = crate::fields::clip(key);
                    return Err(format!("the parameter {key:?} is not available here"));
                }
            }
        }
        Ok(address)
    }

    /// With the files of `metaStoreConfig.mysqlTLS…` for the connection.
    ///
    /// # Errors
    /// They would not be used: what the address has to say for that.
    pub fn with_files(mut self, files: ClientTls) -> Result<Self, String> {
        if files.trusted.is_some() && !matches!(self.tls, MySqlSslMode::VerifyIdentity) {
            return Err(
                "tls=true expected with mysqlTLSCACertPath: nothing else looks at the server's certificate"
                    .to_owned(),
            );
        }
        if files.identity.is_some() && matches!(self.tls, MySqlSslMode::Disabled) {
            return Err("tls=true expected with mysqlTLSCertPath".to_owned());
        }
        self.files = files;
        Ok(self)
    }
}

/// `tls=` of the Go driver, with its spellings. The names that a Go program registers with it are not known here.
fn tls_mode(value: &str) -> Result<MySqlSslMode, String> {
    Ok(match value {
        "1" | "true" | "TRUE" | "True" => MySqlSslMode::VerifyIdentity,
        "0" | "false" | "FALSE" | "False" => MySqlSslMode::Disabled,
        _ if value.eq_ignore_ascii_case("skip-verify") => MySqlSslMode::Required,
        _ if value.eq_ignore_ascii_case("preferred") => MySqlSslMode::Preferred,
        _ => {
            return Err(
                "tls=true, false, skip-verify or preferred expected; for an authority of one's own tls=true and metaStoreConfig.mysqlTLSCACertPath, not a registered name"
                    .to_owned(),
            );
        }
    })
}

impl StoreConfig {
    /// For the log.
    pub fn shown(&self) -> String {
        match self {
            StoreConfig::Sqlite(path) => format!("sqlite {}", path.display()),
            StoreConfig::Postgres { root, .. } => format!("postgres, tables {root}_*"),
            StoreConfig::Mysql { address, root } => format!("{address}, tables {root}_*"),
            StoreConfig::Etcd(server) => {
                format!(
                    "etcd {}, root {}",
                    server.endpoints.join(", "),
                    server.root_path
                )
            }
        }
    }

    /// # Errors
    /// It cannot be reached, is not ours, or of a newer version.
    pub async fn open(&self) -> anyhow::Result<Arc<dyn Backend>> {
        Ok(match self {
            StoreConfig::Sqlite(path) => Arc::new(SqlStore::open(path).await?),
            StoreConfig::Postgres { url, root } => {
                Arc::new(SqlStore::connect(&postgres(url, root)?).await?)
            }
            StoreConfig::Mysql { address, root } => {
                Arc::new(SqlStore::connect(&SqlServer::mysql(address, root)).await?)
            }
            StoreConfig::Etcd(server) => Arc::new(EtcdStore::connect(server.clone()).await?),
        })
    }

    /// Opens the store to look at it, whoever owns it; `None` if it is not there yet. Changes nothing in it, makes
    /// nothing, and takes no ownership.
    ///
    /// # Errors
    /// It cannot be reached, is not ours, of a newer version, or encrypted with another key.
    pub async fn look(&self, key: Option<SealKey>) -> anyhow::Result<Option<SharedTaskStore>> {
        let found = match self {
            StoreConfig::Sqlite(path) if !path.exists() => None,
            StoreConfig::Sqlite(path) => Some(SqlStore::look(path)?),
            StoreConfig::Postgres { url, root } => SqlStore::look_at(&postgres(url, root)?).await?,
            StoreConfig::Mysql { address, root } => {
                SqlStore::look_at(&SqlServer::mysql(address, root)).await?
            }
            // Its handle writes nothing without a term.
            StoreConfig::Etcd(server) => {
                let store = Arc::new(EtcdStore::connect(server.clone()).await?);
                return Ok(Some(Arc::new(Sealed::open(store, key).await?)));
            }
        };
        Ok(match found {
            None => None,
            Some(store) => Some(Arc::new(Sealed::open(Arc::new(store), key).await?)),
        })
    }
}

fn postgres(url: &Secret, root: &str) -> anyhow::Result<SqlServer> {
    SqlServer::postgres(url.expose(), root)
        .map_err(|e| anyhow::anyhow!("metaStoreConfig.postgresSourceUrl: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_go_servers_form_of_an_address_is_read() {
        let a = MysqlAddress::parse("root:r@o/t:1@tcp(db.example:3307)/cdc?charset=utf8&tls=true")
            .unwrap();
        assert_eq!(
            (
                a.user.as_str(),
                a.password.expose(),
                a.host.as_str(),
                a.port,
                a.database.as_str()
            ),
            ("root", "r@o/t:1", "db.example", 3307, "cdc")
        );
        assert!(matches!(a.tls, MySqlSslMode::VerifyIdentity));
        assert_eq!(a.to_string(), "mysql root@db.example:3307/cdc");
        assert!(!format!("{a:?}").contains("r@o/t:1"));
        let short = MysqlAddress::parse("u@/d").unwrap();
        assert_eq!((short.host.as_str(), short.port), ("127.0.0.1", 3306));
        for (value, mode) in [
            ("1", "VerifyIdentity"),
            ("False", "Disabled"),
            ("Skip-Verify", "Required"),
            ("preferred", "Preferred"),
        ] {
            let a = MysqlAddress::parse(&format!("u@/d?tls={value}")).unwrap();
            assert_eq!(format!("{:?}", a.tls), mode);
        }
        let socket = MysqlAddress::parse("u:p@unix(/run/my.sock)/d").unwrap();
        assert_eq!(socket.socket, Some("/run/my.sock".into()));
        for (wrong, said) in [
            ("hunter2", "expected"),
            ("u:hunter2@tcp(h:1)/", "database is missing"),
            ("u:hunter2@tcp(h:x)/d", "port"),
            ("u:hunter2@quic(h:1)/d", "unix"),
            ("u:hunter2@tcp(h:1)/d?tls=mine", "mysqlTLSCACertPath"),
            ("u:hunter2@tcp(h:1)/d?sql_mode=1", "sql_mode"),
        ] {
            let error = MysqlAddress::parse(wrong).unwrap_err();
            assert!(
                error.contains(said) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
