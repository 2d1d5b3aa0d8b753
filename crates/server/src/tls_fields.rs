//! The settings of TLS on our side as a client, under the names of the Go server.
//!
//! The files are looked at when they are named, so that what cannot work is refused with the field's name; later they
//! are read for every connection.

use std::path::PathBuf;

use cdc_core::tls::{ClientTls, Identity, TlsError, TlsFile, TlsVersion, is_server_name};
use serde_json::{Map, Value, json};

use crate::fields::{Fields, clip};

/// The keys of an etcd that mean nothing without TLS.
pub const ETCD: [&str; 4] = [
    "tlsCertPath",
    "tlsKeyPath",
    "tlsCACertPath",
    "tlsMinVersion",
];

/// Whom to trust as a MySQL store, and who we are. The Go driver has no such settings: a program registers them there,
/// under a name.
pub const MYSQL: [&str; 3] = ["mysqlTLSCACertPath", "mysqlTLSCertPath", "mysqlTLSKeyPath"];

struct Names {
    trusted: &'static str,
    certificate: &'static str,
    key: &'static str,
}

/// `tlsCACertPath`, `tlsCertPath`, `tlsKeyPath` and `tlsMinVersion` of an etcd.
pub fn etcd(fields: &Fields<'_>) -> ClientTls {
    let names = Names {
        trusted: "tlsCACertPath",
        certificate: "tlsCertPath",
        key: "tlsKeyPath",
    };
    let tls = ClientTls {
        trusted: path(fields, names.trusted),
        identity: identity(fields, &names),
        server_name: None,
        oldest: oldest(fields),
    };
    check(fields, &names, &tls);
    tls
}

/// The files of [`MYSQL`].
pub fn mysql(fields: &Fields<'_>) -> ClientTls {
    let [trusted, certificate, key] = MYSQL;
    let names = Names {
        trusted,
        certificate,
        key,
    };
    let tls = ClientTls {
        trusted: path(fields, names.trusted),
        identity: identity(fields, &names),
        ..ClientTls::default()
    };
    check(fields, &names, &tls);
    tls
}

fn oldest(fields: &Fields<'_>) -> TlsVersion {
    let Some(value) = fields.get("tlsMinVersion") else {
        return TlsVersion::default();
    };
    // YAML takes 1.3 without quotes for a number.
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.as_str() {
        // At least these; there is no older one here than 1.2.
        "1.0" | "1.1" | "1.2" => TlsVersion::V12,
        "1.3" => TlsVersion::V13,
        other => {
            let what = format!("one of 1.0, 1.1, 1.2, 1.3 expected, not {:?}", clip(other));
            fields.wrong("tlsMinVersion", what);
            TlsVersion::default()
        }
    }
}

/// `dial_config` of a target: the settings, and as they are shown in answers.
pub fn dial_config(fields: Fields<'_>) -> (ClientTls, Map<String, Value>) {
    let (server, authority) = (
        path(&fields, "server_pem_path"),
        path(&fields, "ca_pem_path"),
    );
    if server.is_some() && authority.is_some() {
        fields.wrong(
            "server_pem_path",
            "either this (the server's own certificate) or ca_pem_path (its authority) expected, not both",
        );
    }
    let names = Names {
        trusted: if server.is_some() {
            "server_pem_path"
        } else {
            "ca_pem_path"
        },
        certificate: "client_pem_path",
        key: "client_key_path",
    };
    let server_name = fields.string("server_name").filter(|name| !name.is_empty());
    if let Some(name) = &server_name
        && !is_server_name(name)
    {
        let what = format!(
            "a host name or an IP address expected, not {:?}",
            clip(name)
        );
        fields.wrong("server_name", what);
    }
    let tls = ClientTls {
        trusted: server.or(authority),
        identity: identity(&fields, &names),
        server_name,
        oldest: TlsVersion::default(),
    };
    check(&fields, &names, &tls);
    let mut shown = Map::new();
    let given = fields.entries().filter_map(|(key, value)| {
        let text = value.as_str().filter(|text| !text.is_empty())?;
        Some((key.clone(), json!(text)))
    });
    shown.extend(given);
    fields.finish();
    (tls, shown)
}

fn path(fields: &Fields<'_>, key: &'static str) -> Option<PathBuf> {
    let given = fields.string(key).filter(|path| !path.is_empty());
    given.map(PathBuf::from)
}

fn identity(fields: &Fields<'_>, names: &Names) -> Option<Identity> {
    let alone = |missing: &'static str, given: &str| {
        fields.wrong(
            missing,
            format_args!("missing; it goes together with {given}"),
        );
        None
    };
    match (path(fields, names.certificate), path(fields, names.key)) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (Some(_), None) => alone(names.key, names.certificate),
        (None, Some(_)) => alone(names.certificate, names.key),
        (None, None) => None,
    }
}

fn check(fields: &Fields<'_>, names: &Names, tls: &ClientTls) {
    let Err(error) = tls.check() else {
        return;
    };
    let key = match &error {
        TlsError::File { file, .. } => match file {
            TlsFile::Trusted => names.trusted,
            TlsFile::Certificate => names.certificate,
            TlsFile::Key => names.key,
        },
        _ => names.key,
    };
    let expected = match &error {
        TlsError::File { .. } => "a PEM file that can be read expected",
        _ => "the key of that certificate expected",
    };
    fields.wrong(key, format_args!("{error}; {expected}"));
}
