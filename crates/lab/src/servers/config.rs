//! The `milvus.yaml` of one server: the template of the wheel, ports, folders and our overrides.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_yaml_ng::{Mapping, Value};

use super::ports::free_port;
use super::{Mq, Pulsar, Spec};

/// The ports of one server; kept over its restarts.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    pub(super) proxy: u16,
    pub(super) metrics: u16,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
    pub(super) nats: u16,
}

impl Ports {
    pub(super) fn pick() -> Result<Self> {
        Ok(Self {
            proxy: free_port()?,
            metrics: free_port()?,
            etcd: free_port()?,
            etcd_peer: free_port()?,
            nats: free_port()?,
        })
    }
}

/// Writes `{dir}/configs/{milvus.yaml,etcd.yaml,glog.conf}`.
///
/// `kafka`: `host:port`, of use only with that queue; so is `pulsar`.
pub(super) fn write(
    spec: &Spec,
    ports: &Ports,
    kafka: &str,
    pulsar: Option<&Pulsar>,
    unpacked: &Path,
) -> Result<()> {
    let dir = &spec.dir;
    let configs = dir.join("configs");
    std::fs::create_dir_all(&configs).with_context(|| format!("create {}", configs.display()))?;
    let template = unpacked.join("config.yaml.template");
    let template = std::fs::read_to_string(&template)
        .with_context(|| format!("read {}", template.display()))?;
    let filled = fill_in(&template, |key, default| {
        Ok(match key {
            "proxy_port" => ports.proxy.to_string(),
            "etcd_port" => ports.etcd.to_string(),
            "etcd_log_level" => "warn".to_owned(),
            "etcd_log_path" => dir.join("etcd.log").display().to_string(),
            "system_log_path" => String::new(),
            k if k.ends_with("_port") => free_port()?.to_string(),
            k if k.ends_with("_dir") => dir.join(k).display().to_string(),
            _ => default.to_owned(),
        })
    })?;
    let mut yaml: Value = serde_yaml_ng::from_str(&filled)
        .context("the template of the wheel is not YAML once filled in")?;
    for (key, value) in settings(spec, ports, kafka, pulsar) {
        put(&mut yaml, &key, value)?;
    }
    for (key, value) in &spec.overrides {
        let value = serde_yaml_ng::from_str(value)
            .with_context(|| format!("the override {key}: {value}"))?;
        put(&mut yaml, key, value)?;
    }
    std::fs::write(
        configs.join("milvus.yaml"),
        serde_yaml_ng::to_string(&yaml)?,
    )?;
    std::fs::write(configs.join("etcd.yaml"), etcd_yaml(ports))?;
    let glog = unpacked.join("glog.conf");
    if glog.exists() {
        std::fs::copy(glog, configs.join("glog.conf"))?;
    }
    Ok(())
}

fn settings(
    spec: &Spec,
    ports: &Ports,
    kafka: &str,
    pulsar: Option<&Pulsar>,
) -> Vec<(String, Value)> {
    let dir = &spec.dir;
    let path = |name: &str| Value::from(dir.join(name).display().to_string());
    let mut all: Vec<(&str, Value)> = vec![
        (
            "etcd.endpoints",
            Value::from(format!("127.0.0.1:{}", ports.etcd)),
        ),
        ("etcd.use.embed", Value::from(true)),
        ("etcd.config.path", path("configs/etcd.yaml")),
        ("etcd.data.dir", path("etcd")),
        ("etcd.rootPath", Value::from(spec.name.clone())),
        ("minio.rootPath", Value::from(spec.name.clone())),
        (
            "mq.type",
            Value::from(match spec.mq {
                Mq::Natsmq => "natsmq",
                Mq::Rocksmq => "rocksmq",
                Mq::Pulsar => "pulsar",
                Mq::Kafka => "kafka",
            }),
        ),
        ("kafka.brokerList", Value::from(kafka)),
        ("natsmq.server.port", Value::from(ports.nats)),
        ("natsmq.server.storeDir", path("nats")),
        ("natsmq.server.monitor.logFile", path("nats.log")),
        ("rocksmq.path", path("rocksmq")),
        ("localStorage.path", path("local")),
        ("common.storageType", Value::from("local")),
        (
            "common.chanNamePrefix.cluster",
            Value::from(spec.name.clone()),
        ),
        // A server that takes ReplicateMessage must not write time ticks of its own.
        ("common.ttMsgEnabled", Value::from(!spec.standby)),
        // A 2.3.5 that merges segments while deletes of several of them are flushed forgets some of these deletes when
        // it restarts (ARCHITECTURE.md, "When the target restarts").
        (
            "dataCoord.compaction.enableAutoCompaction",
            Value::from(!spec.standby),
        ),
        ("quotaAndLimits.flushRate.enabled", Value::from(false)),
        ("log.level", Value::from("warn")),
        ("log.file.rootPath", Value::from("")),
    ];
    if let Some(pulsar) = pulsar {
        all.push(("pulsar.address", Value::from("127.0.0.1")));
        all.push(("pulsar.port", Value::from(pulsar.port())));
        all.push(("pulsar.webport", Value::from(pulsar.admin_port())));
    }
    // Several servers share the ports that are not in the template otherwise.
    all.push(("proxy.http.enabled", Value::from(false)));
    all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn etcd_yaml(ports: &Ports) -> String {
    let (client, peer) = (ports.etcd, ports.etcd_peer);
    // No fsync: a laboratory has to survive kill -9 of a process, not a power cut, and slow disks would slow every DDL.
    format!(
        "name: default\n\
         listen-client-urls: http://127.0.0.1:{client}\n\
         advertise-client-urls: http://127.0.0.1:{client}\n\
         listen-peer-urls: http://127.0.0.1:{peer}\n\
         initial-advertise-peer-urls: http://127.0.0.1:{peer}\n\
         initial-cluster: default=http://127.0.0.1:{peer}\n\
         unsafe-no-fsync: true\n"
    )
}

/// Replaces each `{{ key(type): default }}`.
fn fill_in(template: &str, value: impl Fn(&str, &str) -> Result<String>) -> Result<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((inner, tail)) = after.split_once("}}") else {
            bail!("the template has an open {{{{")
        };
        let (head, default) = inner.split_once(':').unwrap_or((inner, ""));
        let key = head.split('(').next().unwrap_or(head).trim();
        out.push_str(&value(key, default.trim())?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn put(root: &mut Value, path: &str, value: Value) -> Result<()> {
    let mut node = root;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        if !node.is_mapping() {
            *node = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(map) = node else {
            bail!("no mapping at {path}")
        };
        if parts.peek().is_none() {
            map.insert(Value::from(part), value);
            return Ok(());
        }
        node = map
            .entry(Value::from(part))
            .or_insert(Value::Mapping(Mapping::new()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_with_their_defaults_at_hand() {
        let out = fill_in(
            "a: {{ a_port(int): 5 }}\nb: {{ b: x.pem }}\nc: {{ c_dir }} # c\n",
            |key, default| {
                Ok(if key == "a_port" {
                    "7".into()
                } else if default.is_empty() {
                    format!("/{key}")
                } else {
                    default.into()
                })
            },
        )
        .unwrap();
        assert_eq!(out, "a: 7\nb: x.pem\nc: /c_dir # c\n");
    }

    #[test]
    fn a_nested_setting_replaces_and_adds() {
        let mut y: Value = serde_yaml_ng::from_str("a: {b: 1}\nc:\n").unwrap();
        put(&mut y, "a.b", Value::from(2)).unwrap();
        put(&mut y, "c.d.e", Value::from("f")).unwrap();
        assert_eq!(y["a"]["b"], Value::from(2));
        assert_eq!(y["c"]["d"]["e"], Value::from("f"));
    }
}
