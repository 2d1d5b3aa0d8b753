//! `milvus_connect_param`: how to reach the target.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::Uri;
use cdc_core::secret::Secret;
use cdc_core::tls::ClientTls;
use serde_json::{Map, Value, json};

use crate::fields::{Fields, clip};
use crate::tls_fields;

pub(super) struct Connect {
    pub(super) uri: String,
    pub(super) token: Secret,
    pub(super) tls: ClientTls,
    pub(super) timeout: Duration,
    /// As it is shown to people: no login.
    pub(super) shown: Map<String, Value>,
}

pub(super) fn connect_param(param: Fields<'_>) -> Option<Connect> {
    let uri = param.string("uri").filter(|uri| !uri.is_empty());
    let host = param.string("host").filter(|host| !host.is_empty());
    let port = param.integer("port", 0..=65_535).filter(|port| *port > 0);
    let enable_tls = param.boolean("enable_tls").unwrap_or(false);
    let scheme = if enable_tls { "https" } else { "http" };
    let mut shown = Map::new();
    let mut show = |key: &str, value: Value| shown.insert(key.to_owned(), value);
    show("host", json!(host.as_deref().unwrap_or_default()));
    show("port", json!(port.unwrap_or_default()));
    show("enable_tls", json!(enable_tls));
    let uri = match (uri, host, port) {
        (Some(uri), ..) => match normalise_with(scheme, &uri) {
            Ok(uri) => Some(uri),
            Err(cause) => {
                param.wrong("uri", cause);
                None
            }
        },
        (None, Some(host), Some(port)) => {
            match normalise_uri(&format!("{scheme}://{host}:{port}")) {
                Ok(uri) => Some(uri),
                Err(cause) => {
                    param.wrong("host", cause);
                    None
                }
            }
        }
        _ => {
            param.wrong(
                "uri",
                "missing; http://host:port of the target (or host and port)",
            );
            None
        }
    };
    show("uri", json!(uri));
    let token = login(&param);
    let timeout = param
        .integer("connect_timeout", 0..=300)
        .filter(|s| *s > 0)
        .unwrap_or(10);
    show("connect_timeout", json!(timeout));
    let channels = param.integer("channel_num", 0..=u64::from(u32::MAX));
    show("channel_num", json!(channels.unwrap_or_default()));
    let (tls, dial_config) = param
        .object("dial_config")
        .map(tls_fields::dial_config)
        .unwrap_or_default();
    // Half a wish for TLS must not end as none: refused rather than guessed.
    if let Some(plain) = uri.as_deref().filter(|uri| uri.starts_with("http://")) {
        let expected = format!("contradicts {plain}; https:// expected there");
        if enable_tls {
            param.wrong("enable_tls", format_args!("true {expected}"));
        }
        if !dial_config.is_empty() {
            param.wrong("dial_config", expected);
        }
    }
    show("dial_config", Value::Object(dial_config));
    if param.boolean("ignore_partition") == Some(true) {
        param.wrong("ignore_partition", "not available in this version");
    }
    show("ignore_partition", json!(false));
    param.finish();
    Some(Connect {
        uri: uri?,
        token,
        tls,
        timeout: Duration::from_secs(timeout),
        shown,
    })
}

fn login(param: &Fields<'_>) -> Secret {
    let token = param.secret("token").filter(|t| !t.is_empty());
    let username = param.secret("username").filter(|t| !t.is_empty());
    let password = param.secret("password").filter(|t| !t.is_empty());
    match (token, username, password) {
        (Some(token), ..) => Secret::new(token),
        (None, Some(username), Some(password)) => Secret::new(format!("{username}:{password}")),
        (None, None, None) => Secret::default(),
        (None, Some(_), None) => {
            param.wrong("password", "missing; username and password go together");
            Secret::default()
        }
        (None, None, Some(_)) => {
            param.wrong("username", "missing; username and password go together");
            Secret::default()
        }
    }
}

/// As [`normalise_uri`], with the scheme for an address without one.
fn normalise_with(scheme: &str, uri: &str) -> Result<String, String> {
    match uri.contains("://") {
        true => normalise_uri(uri),
        false => normalise_uri(&format!("{scheme}://{uri}")),
    }
}

/// Lower case, with scheme and port, without a path, and one spelling for this machine itself: one target has one
/// address.
pub fn normalise_uri(uri: &str) -> Result<String, String> {
    let expected = "http://host:port or https://host:port expected";
    if uri.contains(['@', '?', '#']) {
        // Not shown: it may hold a password.
        return Err(format!(
            "{expected}, without a login or parameters; use token"
        ));
    }
    let bad = || format!("{expected}, not {:?}", clip(uri));
    let full = if uri.contains("://") {
        uri.to_owned()
    } else {
        format!("http://{uri}")
    };
    let parsed: Uri = full.parse().map_err(|_| bad())?;
    let scheme = parsed
        .scheme_str()
        .map(str::to_ascii_lowercase)
        .filter(|s| s == "http" || s == "https");
    let (Some(scheme), Some(host)) = (scheme, parsed.host().filter(|h| !h.is_empty())) else {
        return Err(bad());
    };
    if !matches!(parsed.path(), "" | "/") {
        return Err(bad());
    }
    let port = match (
        parsed.port_u16(),
        parsed.authority().map(|a| a.as_str().len() > host.len()),
    ) {
        (Some(0), _) | (None, Some(true)) => return Err(bad()),
        (Some(port), _) => port,
        (None, _) => 19530,
    };
    Ok(format!("{scheme}://{}:{port}", one_host(&scheme, host)))
}

/// A host in one spelling. This machine itself is named so that the connection works as it would with any of the
/// others: a certificate is rather for `localhost`, and without one the address needs no look-up.
fn one_host(scheme: &str, host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let address: Option<IpAddr> = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
        .map(|ip: IpAddr| ip.to_canonical());
    let own = match address {
        Some(IpAddr::V4(ip)) => ip.octets() == [127, 0, 0, 1] || ip.is_unspecified(),
        Some(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unspecified(),
        None => host == "localhost",
    };
    match (own, address) {
        (true, _) if scheme == "https" => "localhost".to_owned(),
        (true, _) => "127.0.0.1".to_owned(),
        (false, Some(IpAddr::V6(ip))) => format!("[{ip}]"),
        (false, Some(ip)) => ip.to_string(),
        (false, None) => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_target_has_one_spelling() {
        for uri in [
            "http://HOST:19530",
            "host:19530",
            "http://host",
            "HTTP://host:19530/",
            "http://host.:19530",
        ] {
            assert_eq!(
                normalise_uri(uri).as_deref(),
                Ok("http://host:19530"),
                "{uri}"
            );
        }
        for host in [
            "localhost",
            "LocalHost",
            "127.0.0.1",
            "[::1]",
            "0.0.0.0",
            "[::ffff:127.0.0.1]",
        ] {
            assert_eq!(
                normalise_uri(&format!("http://{host}:1")).as_deref(),
                Ok("http://127.0.0.1:1")
            );
            assert_eq!(
                normalise_uri(&format!("https://{host}:1")).as_deref(),
                Ok("https://localhost:1")
            );
        }
        assert_eq!(
            normalise_uri("http://[2001:DB8:0:0::5]:1"),
            normalise_uri("http://[2001:db8::5]:1")
        );
        assert_ne!(
            normalise_uri("http://127.0.0.2:1"),
            normalise_uri("http://127.0.0.1:1")
        );
        for bad in [
            "ftp://h:1",
            "http://",
            "http://h:0",
            "http://h:99999",
            "http://h:1/path",
            "",
        ] {
            assert!(normalise_uri(bad).is_err(), "{bad}");
        }
        for secret in ["http://u:hush@h:1", "http://h:1?token=hush"] {
            assert!(!normalise_uri(secret).unwrap_err().contains("hush"));
        }
    }
}
