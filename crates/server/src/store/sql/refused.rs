//! Why a database server cannot be used, in the words of the settings.

use cdc_core::tls::{ClientTls, TlsError};
use sqlx::mysql::{MySqlDatabaseError, MySqlSslMode};
use sqlx::postgres::PgSslMode;

use super::connection::Target;

/// What a person calls the settings.
struct Names {
    /// The login and the address.
    url: &'static str,
    /// What makes sure of the server, in `url`.
    tls: &'static str,
    /// What goes without TLS, in `url`.
    plain: &'static str,
    trusted: &'static str,
    identity: &'static str,
}

const POSTGRES: Names = Names {
    url: "metaStoreConfig.postgresSourceUrl",
    tls: "sslmode=verify-full",
    plain: "sslmode=disable",
    trusted: "sslrootcert of metaStoreConfig.postgresSourceUrl",
    identity: "sslcert and sslkey of metaStoreConfig.postgresSourceUrl",
};
const MYSQL: Names = Names {
    url: "metaStoreConfig.mysqlSourceUrl",
    tls: "tls=true",
    plain: "tls=false",
    trusted: "metaStoreConfig.mysqlTLSCACertPath",
    identity: "metaStoreConfig.mysqlTLSCertPath and mysqlTLSKeyPath",
};

/// Of MySQL: only over TLS.
const SECURE_TRANSPORT_REQUIRED: u16 = 3159;

/// The cause, and what to do about it.
pub(super) fn explain(target: &Target, files: &ClientTls, error: &sqlx::Error) -> String {
    // The library does not say which file.
    if is_of_the_connection(error)
        && let Err(fault) = files.check()
    {
        let names = names(target);
        return format!(
            "{fault}; put PEM files that can be read there, or correct {} or {}; they are read again for every connection",
            names.trusted, names.identity
        );
    }
    format!("{error}; {}", hint(target, error))
}

fn is_of_the_connection(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Configuration(_)
    )
}

fn names(target: &Target) -> &'static Names {
    match target {
        Target::Postgres(_) => &POSTGRES,
        _ => &MYSQL,
    }
}

fn hint(target: &Target, error: &sqlx::Error) -> String {
    let names = names(target);
    let Names {
        url,
        tls,
        plain,
        trusted,
        identity,
    } = names;
    match error {
        sqlx::Error::Io(cause) => match TlsError::of_handshake(cause) {
            Some(fault) => of_handshake(&fault, names),
            None => format!("check the host and port in {url}, and that the server is up"),
        },
        // The library has no better sign for it.
        sqlx::Error::Tls(cause) if cause.to_string().contains("does not support TLS") => {
            format!("switch TLS on at the server, or leave it out with {plain} in {url}")
        }
        sqlx::Error::Tls(_) => format!(
            "name the authority that issued the server's certificate in {trusted}, and a host in {url} that it is for"
        ),
        sqlx::Error::Database(_) if is_login(error) && is_plain(target) => format!(
            "if the server takes this user only over TLS: set {tls} in {url}, and the authority's file in {trusted}; if not, check the user and the password in {url}, and from where the server takes that user"
        ),
        sqlx::Error::Database(_) if is_login(error) => format!(
            "check the user and the password in {url}, from where the server takes that user, and whether it wants a certificate of ours ({identity})"
        ),
        _ => format!("check {url}, and what its user may do in that database"),
    }
}

fn of_handshake(fault: &TlsError, names: &Names) -> String {
    let Names {
        url,
        tls: _,
        plain,
        trusted,
        identity,
    } = names;
    let step = match fault {
        TlsError::Name(_) => format!("name a host in {url} that the server's certificate is for"),
        TlsError::Date(_) => {
            "renew the server's certificate, or set the clock of this machine".to_owned()
        }
        TlsError::Refused(_) => format!("name a certificate that the server trusts in {identity}"),
        TlsError::Unlike(_) => format!(
            "check that the server speaks TLS 1.2 or newer, or leave TLS out with {plain} in {url}"
        ),
        // A certificate that is its own authority, as `openssl req -x509` makes it, is not taken for a server's.
        _ => format!(
            "put the authority that issued the server's certificate into the file of {trusted}"
        ),
    };
    format!("{step}; the files are read again for every connection")
}

/// The login is refused, for whatever reason. Only MySQL says in a way that can be told that it is for want of TLS;
/// PostgreSQL and MariaDB say it in words that may be of any language, or not at all.
fn is_login(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    let of_mysql = error.try_downcast_ref::<MySqlDatabaseError>();
    of_mysql.is_some_and(|error| error.number() == SECURE_TRANSPORT_REQUIRED)
        || matches!(error.code().as_deref(), Some("28000" | "28P01"))
}

fn is_plain(target: &Target) -> bool {
    match target {
        Target::Postgres(options) => matches!(options.get_ssl_mode(), PgSslMode::Disable),
        Target::Mysql(options) => matches!(options.get_ssl_mode(), MySqlSslMode::Disabled),
        Target::Sqlite(_) => false,
    }
}
