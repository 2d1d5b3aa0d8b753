//! `sourceConfig.pulsar`: the Go server's keys, and keys of our own for TLS.

use std::path::PathBuf;

use cdc_core::secret::Secret;
use cdc_core::source::{PulsarAuth, PulsarConfig, PulsarLogin, PulsarTls};
use serde_json::Value;

use super::{Queue, TIMEOUT, resolve_secret};
use crate::fields::Fields;

/// As in the Go server and in Milvus: 5 MiB.
const MAX_MESSAGE_SIZE: u64 = 5 * 1024 * 1024;

pub(super) fn read(pulsar: &Fields<'_>, ignored: &mut Vec<String>) -> Option<Queue> {
    // Everything goes over the binary protocol; nothing is asked of the admin interface.
    ignored.extend(pulsar.accept(&["webAddress", "webPort"]));
    let address = pulsar.string("address").filter(|a| is_address(a));
    if address.is_none() {
        // Not shown: somebody may have put a password into it.
        pulsar.wrong(
            "address",
            "pulsar://host:port or pulsar+ssl://host:port expected, without a login",
        );
    }
    let tenant = name(pulsar, "tenant", "public");
    let namespace = name(pulsar, "namespace", "default");
    let max_message_size = max_message_size(pulsar);
    let file = |key| {
        pulsar
            .string(key)
            .filter(|p| !p.is_empty())
            .map(PathBuf::from)
    };
    let mut tls = PulsarTls {
        ca: file("tlsCACertPath"),
        client: None,
    };
    let own = (file("tlsCertPath"), file("tlsKeyPath"));
    let auth = read_auth(pulsar);
    tls.client = match own {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => auth.as_ref().and_then(|a| a.client.clone()),
        _ => {
            pulsar.wrong("tlsCertPath", "tlsCertPath and tlsKeyPath belong together");
            None
        }
    };
    let plain = address
        .as_deref()
        .is_some_and(|a| a.starts_with("pulsar://"));
    if plain && tls != PulsarTls::default() {
        pulsar.wrong(
            "address",
            "certificates are given, so it has to begin with pulsar+ssl://",
        );
    }
    Some(Queue::Pulsar(PulsarConfig {
        address: address?,
        tenant,
        namespace,
        auth: auth.map(|a| a.auth),
        tls,
        max_message_size,
        connect_timeout: TIMEOUT,
    }))
}

fn is_address(address: &str) -> bool {
    let hosts = address
        .strip_prefix("pulsar://")
        .or_else(|| address.strip_prefix("pulsar+ssl://"));
    hosts.is_some_and(|hosts| {
        hosts.trim_end_matches('/').split(',').all(|one| {
            one.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok()
            })
        })
    })
}

fn name(pulsar: &Fields<'_>, key: &'static str, default: &str) -> String {
    let given = pulsar.string(key).unwrap_or_else(|| default.to_owned());
    if given.is_empty() || given.contains(['/', ' ']) {
        pulsar.wrong(key, format_args!("a name such as {default} expected"));
    }
    given
}

/// The Go server has it as a text, YAML mostly as a number.
fn max_message_size(pulsar: &Fields<'_>) -> usize {
    let allowed = 1024..=1024 * 1024 * 1024;
    let given = match pulsar.get("maxMessageSize") {
        None => Some(MAX_MESSAGE_SIZE),
        Some(Value::String(text)) => text.parse().ok(),
        Some(other) => other.as_u64(),
    };
    match given.filter(|n| allowed.contains(n)) {
        Some(n) => n as usize,
        None => {
            pulsar.wrong(
                "maxMessageSize",
                format_args!(
                    "a number of bytes from {} to {} expected",
                    allowed.start(),
                    allowed.end()
                ),
            );
            0
        }
    }
}

struct Auth {
    auth: PulsarAuth,
    /// Certificate and key, where these are the login.
    client: Option<(PathBuf, PathBuf)>,
}

/// `authPlugin` with Pulsar's own class names, or what they stand for; `authParams` in any of the forms that Pulsar's
/// clients and Milvus take: `token:…`, `file:///…`, `key:value,key:value`, JSON.
fn read_auth(pulsar: &Fields<'_>) -> Option<Auth> {
    let params = pulsar.secret("authParams").unwrap_or_default();
    let plugin = pulsar.string("authPlugin").filter(|p| !p.is_empty());
    let Some(plugin) = plugin else {
        if !params.is_empty() {
            pulsar.wrong("authPlugin", "missing; authParams means nothing without it");
        }
        return None;
    };
    let short = plugin
        .rsplit(['.', '/'])
        .next()
        .unwrap_or_default()
        .trim_start_matches("Authentication")
        .to_ascii_lowercase();
    let found = match short.as_str() {
        "token" => token(&params),
        "basic" => basic(&params),
        "tls" => certificates(&params),
        _ => {
            pulsar.wrong(
                "authPlugin",
                "one of org.apache.pulsar.client.impl.auth.AuthenticationToken, …AuthenticationBasic, …AuthenticationTls expected",
            );
            return None;
        }
    };
    match found {
        Ok(auth) => Some(auth),
        Err(cause) => {
            pulsar.wrong("authParams", cause);
            None
        }
    }
}

fn of(method: &str, data: PulsarLogin) -> Auth {
    Auth {
        auth: PulsarAuth {
            method: method.to_owned(),
            data,
        },
        client: None,
    }
}

/// The value of a key in JSON or in `key:value,key:value`.
fn param(params: &str, key: &str) -> Option<String> {
    if let Ok(Value::Object(map)) = serde_json::from_str(params) {
        return map.get(key)?.as_str().map(str::to_owned);
    }
    params.split(',').find_map(|pair| {
        let (name, value) = pair.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

fn token(params: &str) -> Result<Auth, String> {
    let reference = match param(params, "file") {
        Some(path) => format!("file:{}", path.strip_prefix("//").unwrap_or(&path)),
        None => param(params, "token")
            .ok_or("token:… or file:///path/of/the/token expected, or JSON with token or file")?,
    };
    let token = match reference.strip_prefix("file:") {
        Some(path) => PulsarLogin::File(path.into()),
        None => PulsarLogin::Fixed(Secret::new(reference.trim())),
    };
    // A file is read again at each login; a wrong path is told now.
    if token.read()?.is_empty() {
        return Err("the token is empty".to_owned());
    }
    Ok(of("token", token))
}

fn basic(params: &str) -> Result<Auth, String> {
    match (param(params, "userId"), param(params, "password")) {
        (Some(user), Some(password)) => {
            let password = resolve_secret(&password)?;
            let login = Secret::new(format!("{user}:{}", password.expose()));
            Ok(of("basic", PulsarLogin::Fixed(login)))
        }
        _ => Err("JSON with userId and password expected".to_owned()),
    }
}

fn certificates(params: &str) -> Result<Auth, String> {
    let file = |key| param(params, key).map(PathBuf::from);
    let none = PulsarLogin::Fixed(Secret::default());
    match (file("tlsCertFile"), file("tlsKeyFile")) {
        (None, None) => Ok(of("tls", none)),
        (Some(certificate), Some(key)) => Ok(Auth {
            client: Some((certificate, key)),
            ..of("tls", none)
        }),
        _ => Err("tlsCertFile and tlsKeyFile belong together".to_owned()),
    }
}
