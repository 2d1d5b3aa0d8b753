//! `postgresSourceUrl`, as users of libpq know it. Of TLS everything is read here: the library would take less than was
//! asked for without a word.

use std::path::PathBuf;
use std::str::FromStr;

use cdc_core::tls::{ClientTls, Identity};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::fields::clip;

/// Parameters that the library knows.
const KNOWN: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "user",
];
/// Parameters of libpq and of Go's drivers that mean nothing here, or are so of themselves.
const IGNORED: &[&str] = &[
    "binary_parameters",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
];

/// What `ssl…` says.
#[derive(Default)]
struct Tls {
    mode: Option<String>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// How to connect, and the files that takes.
///
/// # Errors
/// What is wrong; nothing of the text but names is shown, there is a password in it.
pub(super) fn read(url: &str) -> Result<(PgConnectOptions, ClientTls), String> {
    let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
    let mut tls = Tls::default();
    let mut known = Vec::new();
    for pair in parameters.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match key {
            "sslmode" => &mut tls.mode,
            "sslrootcert" => &mut tls.root,
            "sslcert" => &mut tls.certificate,
            "sslkey" => &mut tls.key,
            key if KNOWN.contains(&key) => {
                known.push(pair);
                continue;
            }
            key if IGNORED.contains(&key) => continue,
            key => {
                let key = clip(key);
                return Err(format!("the parameter {key:?} is not available here"));
            }
        };
        let value = decode(value).ok_or_else(|| format!("{key} is no text"))?;
        *place = Some(value).filter(|value| !value.is_empty());
    }
    let url = match known.is_empty() {
        true => base.to_owned(),
        false => format!("{base}?{}", known.join("&")),
    };
    let options = PgConnectOptions::from_str(&url).map_err(|e| match e {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        _ => "not a URL".to_owned(),
    })?;
    tls.apply(options)
}

impl Tls {
    fn apply(self, mut options: PgConnectOptions) -> Result<(PgConnectOptions, ClientTls), String> {
        // libpq's name for what is so here without a file.
        let system = self.root.as_deref() == Some("system");
        let trusted = self.root.filter(|_| !system).map(PathBuf::from);
        let mode = match (self.mode.as_deref(), &trusted) {
            (None, _) if system => Some(PgSslMode::VerifyFull),
            (None, None) => None,
            (Some("disable"), _) => Some(PgSslMode::Disable),
            (Some("verify-full"), _) => Some(PgSslMode::VerifyFull),
            (Some(_), _) if system => {
                return Err("sslmode=verify-full expected with sslrootcert=system".to_owned());
            }
            (Some("verify-ca"), _) => Some(PgSslMode::VerifyCa),
            (Some("require"), None) => Some(PgSslMode::Require),
            // As in libpq; the library itself would look at nothing.
            (Some("require"), Some(_)) => Some(PgSslMode::VerifyCa),
            (Some("prefer"), None) => Some(PgSslMode::Prefer),
            (None | Some("prefer"), Some(_)) => {
                return Err(
                    "sslmode=verify-full (or verify-ca) expected with sslrootcert: prefer goes on without TLS too"
                        .to_owned(),
                );
            }
            // The library never tries TLS then.
            (Some("allow"), _) => {
                return Err(
                    "sslmode=allow is not available here; prefer tries TLS first, disable never does"
                        .to_owned(),
                );
            }
            (Some(_), _) => {
                return Err(
                    "sslmode: one of disable, prefer, require, verify-ca, verify-full expected"
                        .to_owned(),
                );
            }
        };
        let identity = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificate.into(),
                key: key.into(),
            }),
            (None, None) => None,
            (Some(_), None) => return Err("sslkey is missing; sslcert needs its key".to_owned()),
            (None, Some(_)) => {
                return Err("sslcert is missing; sslkey is of no use alone".to_owned());
            }
        };
        if let Some(mode) = mode {
            options = options.ssl_mode(mode);
        }
        if let Some(path) = &trusted {
            options = options.ssl_root_cert(path);
        }
        if let Some(identity) = &identity {
            options = options
                .ssl_client_cert(&identity.certificate)
                .ssl_client_key(&identity.key);
        }
        let files = ClientTls {
            trusted,
            identity,
            ..ClientTls::default()
        };
        // What cannot work is said now, with its name.
        files
            .check()
            .map_err(|fault| format!("{fault}; a PEM file that can be read expected"))?;
        Ok((options, files))
    }
}

/// `%2F` and the like; `+` stays what it is, as in libpq.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        if !code.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(parameters: &str) -> Result<String, String> {
        let url = format!("postgres://u:hunter2@h:1/d?{parameters}");
        read(&url).map(|(options, _)| format!("{:?}", options.get_ssl_mode()))
    }

    #[test]
    fn of_tls_what_is_asked_for_is_done_or_refused_by_name() {
        let issued = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (root, key) = (
            dir.path().join("an authority.pem"),
            dir.path().join("k.pem"),
        );
        std::fs::write(&root, issued.cert.pem()).unwrap();
        std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
        let file = root
            .to_str()
            .unwrap()
            .replace(' ', "%20")
            .replace('/', "%2F");
        for (parameters, wanted) in [
            ("sslmode=disable", "Disable"),
            ("sslmode=require&connect_timeout=3", "Require"),
            ("sslmode=verify-full", "VerifyFull"),
            ("sslrootcert=system", "VerifyFull"),
            (&format!("sslmode=require&sslrootcert={file}"), "VerifyCa"),
            (
                &format!("sslrootcert={file}&sslmode=verify-full"),
                "VerifyFull",
            ),
        ] {
            assert_eq!(mode(parameters).as_deref(), Ok(wanted), "{parameters}");
        }
        let both = format!(
            "postgres://u@h/d?sslmode=require&sslcert={file}&sslkey={}&application_name=a",
            key.display()
        );
        let (options, files) = read(&both).unwrap();
        assert_eq!(options.get_application_name(), Some("a"));
        assert_eq!(files.identity.unwrap().certificate, root);
        for (parameters, parts) in [
            ("sslmode=allow", &["sslmode=allow", "prefer"][..]),
            ("sslmode=on", &["sslmode", "verify-full"]),
            (
                &format!("sslrootcert={file}"),
                &["sslrootcert", "verify-full"],
            ),
            (
                "sslmode=require&sslrootcert=system",
                &["sslmode=verify-full", "system"],
            ),
            (
                "sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
                &["/nowhere/ca.pem", "PEM"],
            ),
            (&format!("sslcert={file}"), &["sslkey is missing"]),
            ("sslkey=k", &["sslcert is missing"]),
            ("sslpassword=hunter2", &["sslpassword", "not available"]),
            ("channel_binding=require", &["channel_binding"]),
        ] {
            let error = mode(parameters).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error}");
            }
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
