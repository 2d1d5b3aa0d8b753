//! A server that takes nobody without TLS and a login, and one that wants to go there.

use std::path::PathBuf;

use cdc_lab::servers::stores::{PASSWORD, ServerTls, StoreKind, StoreServer, USER};
use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, Permission, PermissionType, TlsOptions,
};
use milvus_cdc::store::open::StoreConfig;
use tempfile::TempDir;

use super::certs::{Authority, Issued};
use crate::place::{self, Kind};

/// What the servers' certificates are for.
pub(super) const HOST: &str = "localhost";

pub(super) struct Secured {
    pub(super) kind: Kind,
    pub(super) server: StoreServer,
    pub(super) authority: Authority,
    dir: TempDir,
}

/// How somebody goes there: rightly, until a test spoils it.
#[derive(Clone)]
pub(super) struct Visitor {
    pub(super) host: &'static str,
    pub(super) password: &'static str,
    /// `tls=`, `sslmode=`; of etcd whether to use TLS at all.
    pub(super) mode: &'static str,
    pub(super) trusted: Option<PathBuf>,
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

pub(super) fn store_kind(kind: Kind) -> StoreKind {
    match kind {
        Kind::Postgres => StoreKind::Postgres,
        Kind::Mysql => StoreKind::Mariadb,
        Kind::Etcd => StoreKind::Etcd,
        Kind::Sqlite => panic!("a file"),
    }
}

/// Without TLS, and with all of it.
pub(super) fn modes(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Postgres => ("disable", "verify-full"),
        _ => ("false", "true"),
    }
}

impl Secured {
    /// `mutual`: it wants a certificate too.
    pub(super) async fn start(kind: Kind, mutual: bool) -> Self {
        let authority = Authority::new();
        let tls = server_tls(&authority, mutual);
        let server = StoreServer::start_secured(store_kind(kind), tls)
            .await
            .unwrap();
        let secured = Self {
            kind,
            server,
            authority,
            dir: tempfile::tempdir().unwrap(),
        };
        if kind == Kind::Etcd {
            secured.enable_auth().await;
        }
        secured
    }

    /// A user that may do what the store needs and no more.
    async fn enable_auth(&self) {
        let own = self.authority.issue("admin");
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(self.authority.pem()))
            .identity(Identity::from_pem(own.certificate, own.key));
        let options = ConnectOptions::new().with_tls(tls);
        let url = self.server.url_of(HOST, "");
        let mut client = Client::connect([url], Some(options)).await.unwrap();
        client.user_add("root", PASSWORD, None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.role_add("store").await.unwrap();
        // All roots of these tests begin with it.
        let below = Permission::new(PermissionType::Readwrite, "t").with_prefix();
        let granted = client.role_grant_permission("store", below);
        granted.await.unwrap();
        client.user_add(USER, PASSWORD, None).await.unwrap();
        client.user_grant_role(USER, "store").await.unwrap();
        client.auth_enable().await.unwrap();
    }

    /// Other certificates, of this authority, and a restart.
    pub(super) async fn renew(&mut self, authority: Authority, mutual: bool) {
        self.authority = authority;
        let tls = server_tls(&self.authority, mutual);
        self.server.set_tls(tls).unwrap();
        self.server.restart().await.unwrap();
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn write_pair(&self, name: &str, pair: &Issued) -> (PathBuf, PathBuf) {
        let certificate = self.write(&format!("{name}.pem"), &pair.certificate);
        (certificate, self.write(&format!("{name}.key"), &pair.key))
    }

    /// With everything that is asked for, in files of these names.
    pub(super) fn visitor(&self, mutual: bool) -> Visitor {
        let own = self.authority.issue("a client");
        Visitor {
            host: HOST,
            password: PASSWORD,
            mode: modes(self.kind).1,
            trusted: Some(self.write("trusted.pem", &self.authority.pem())),
            identity: mutual.then(|| self.write_pair("own", &own)),
        }
    }

    pub(super) fn store(&self, root: &str, of: &Visitor) -> Result<StoreConfig, String> {
        place::parse(&self.yaml(root, of))
    }

    /// The configuration in which that is said.
    pub(super) fn yaml(&self, root: &str, of: &Visitor) -> String {
        let url = self.server.url_of(of.host, of.password);
        let trusted = of.trusted.as_ref().map(|path| path.display().to_string());
        let identity = of.identity.as_ref();
        let identity = identity.map(|(c, k)| (c.display().to_string(), k.display().to_string()));
        let names = match self.kind {
            Kind::Postgres => ["sslrootcert", "sslcert", "sslkey"],
            Kind::Mysql => ["mysqlTLSCACertPath", "mysqlTLSCertPath", "mysqlTLSKeyPath"],
            _ => ["tlsCACertPath", "tlsCertPath", "tlsKeyPath"],
        };
        let (certificate, key) = identity.unzip();
        let files: Vec<(&str, String)> = names
            .into_iter()
            .zip([trusted, certificate, key])
            .filter_map(|(name, path)| Some((name, path?)))
            .collect();
        let join = |between: &str, sign: &str| -> String {
            let pair = |(name, path): &(&str, String)| format!("{between}{name}{sign}{path}");
            files.iter().map(pair).collect()
        };
        let mode = of.mode;
        let (kind, place) = match self.kind {
            Kind::Postgres => {
                let url = format!("{url}?sslmode={mode}{}", join("&", "="));
                ("postgres", format!("postgresSourceUrl: '{url}'"))
            }
            Kind::Mysql => {
                let files = join(", ", ": ");
                let url = format!("mysqlSourceUrl: '{url}&tls={mode}'{files}");
                ("mysql", url)
            }
            _ => {
                let url = url.replace("https://", "");
                let login = format!(
                    "enableAuth: true, username: {USER}, password: '{}'",
                    of.password
                );
                let files = join(", ", ": ");
                let etcd = format!("address: ['{url}'], {login}, enableTLS: {mode}{files}");
                ("etcd", format!("etcd: {{{etcd}}}"))
            }
        };
        format!("metaStoreConfig: {{storeType: {kind}, rootPath: {root}, {place}}}\n")
    }
}

fn server_tls(authority: &Authority, mutual: bool) -> ServerTls {
    let own = authority.issue(HOST);
    ServerTls {
        certificate: own.certificate,
        key: own.key,
        clients: mutual.then(|| authority.pem()),
    }
}
