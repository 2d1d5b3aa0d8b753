//! A look at a source before a task is accepted.

use etcd_client::GetOptions;

use super::client::Link;
use super::{CatalogError, EtcdConfig};

/// What a source says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceInfo {
    /// As its root coordinator wrote it; empty while the source is down.
    pub version: String,
}

/// Looks whether there is a Milvus below the configured root that can be read. Every call has the configured deadline.
///
/// # Errors
/// Any [`CatalogError`] but `Undecodable`: what is wrong with the address, the login, the root, or the version.
pub async fn probe(config: &EtcdConfig) -> Result<SourceInfo, CatalogError> {
    let link = Link::new(config.clone());
    let meta = config.meta_prefix();
    let mut sessions = 0;
    let mut versions: Vec<(bool, String)> = Vec::new();
    let session_prefix = format!("{meta}session/");
    link.pages(&session_prefix, GetOptions::new(), 0, |kv| {
        sessions += 1;
        if let Some(version) = version_of(kv.value()) {
            versions.push((
                !kv.key()
                    .starts_with(format!("{session_prefix}rootcoord").as_bytes()),
                version,
            ));
        }
    })
    .await?;
    let metadata = any(&link, format!("{meta}root-coord/")).await?;
    let streaming = any(&link, format!("{meta}streamingcoord-meta/")).await?;
    let endpoints = config.shown_endpoints();
    if !metadata {
        return Err(match sessions {
            0 => CatalogError::NoMilvus {
                endpoints,
                prefix: meta,
            },
            _ => CatalogError::Elsewhere {
                endpoints,
                prefix: meta,
            },
        });
    }
    versions.sort();
    match versions.into_iter().next() {
        Some((_, version)) if is_readable(&version) => Ok(SourceInfo { version }),
        Some((_, version)) => Err(CatalogError::Version { version }),
        None if streaming => Err(CatalogError::Version {
            version: "2.6 or newer".to_owned(),
        }),
        None => Ok(SourceInfo {
            version: String::new(),
        }),
    }
}

/// How deep a root path may be to be found by [`roots`], and how many questions it asks at most.
const DEPTH: usize = 3;
const QUESTIONS: usize = 300;

/// Where in this etcd a Milvus keeps its metadata, as pairs of rootPath and metaSubPath: for somebody whose root path
/// leads to none. Skips from folder to folder, so that its cost does not grow with what is in them, and ends after a few
/// hundred questions.
///
/// # Errors
/// etcd does not answer, or this user may not read it as a whole.
pub async fn roots(config: &EtcdConfig) -> Result<Vec<(String, String)>, CatalogError> {
    let link = Link::new(config.clone());
    let mut found = Vec::new();
    let mut questions = 0;
    let mut folders = vec![(String::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut from = folder.clone().into_bytes();
        let mut end = from.clone();
        match end.last_mut() {
            // `/` has the successor `0`.
            Some(last) => *last = last.saturating_add(1),
            // All keys.
            None => (from, end) = (vec![0], vec![0]),
        }
        while questions < QUESTIONS {
            questions += 1;
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(1)
                .with_keys_only();
            let answer = link.get(&from, options).await?;
            let Some(kv) = answer.kvs().first() else {
                break;
            };
            let inside = kv.key().get(folder.len()..).unwrap_or_default();
            let Some(length) = inside.iter().position(|byte| *byte == b'/') else {
                from = kv.key().to_vec();
                from.push(0);
                continue;
            };
            let name = String::from_utf8_lossy(&inside[..length]).into_owned();
            let child = format!("{folder}{name}/");
            from = kv.key()[..folder.len() + length].to_vec();
            from.push(b'/' + 1);
            questions += 1;
            if any(&link, format!("{child}root-coord/")).await? {
                found.push((folder.trim_end_matches('/').to_owned(), name));
            } else if depth + 1 < DEPTH {
                folders.push((child, depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

async fn any(link: &Link, prefix: String) -> Result<bool, CatalogError> {
    let options = GetOptions::new()
        .with_prefix()
        .with_limit(1)
        .with_keys_only();
    Ok(!link.get(prefix.as_bytes(), options).await?.kvs().is_empty())
}

/// The `Version` of a session's JSON (`internal/util/sessionutil`).
fn version_of(value: &[u8]) -> Option<String> {
    let session: serde_json::Value = serde_json::from_slice(value).ok()?;
    let fields = session.as_object()?;
    let (_, version) = fields
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("version"))?;
    version
        .as_str()
        .filter(|version| !version.is_empty())
        .map(str::to_owned)
}

/// 2.3 to 2.5: 2.6 writes another format to its queue.
fn is_readable(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches('v')
        .split(['.', '-', '+'])
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => major == 2 && (3..=5).contains(&minor),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_2_3_to_2_5_are_readable() {
        for version in ["2.3.0", "2.3.5", "v2.4.23", "2.5.27-dev", "2.5"] {
            assert!(is_readable(version), "{version}");
        }
        for version in [
            "2.2.16",
            "2.6.0",
            "2.6.18-abc",
            "3.0.0",
            "",
            "master",
            "1.1.1",
        ] {
            assert!(!is_readable(version), "{version}");
        }
    }

    #[test]
    fn the_version_of_a_session_is_read() {
        let session =
            br#"{"ServerID":5,"ServerName":"rootcoord","Address":"a:1","Version":"2.3.5"}"#;
        assert_eq!(version_of(session).as_deref(), Some("2.3.5"));
        assert_eq!(version_of(b"{}"), None);
        assert_eq!(version_of(b"not json"), None);
    }
}
