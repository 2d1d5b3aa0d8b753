//! A source's etcd and a target behind certificates and passwords.

pub(crate) mod certs;
pub(crate) mod etcd;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cdc_lab::audit::verdict;
use cdc_lab::cdc::{Addresses, Cdc};
use cdc_lab::client::Client;
use cdc_lab::compare::{Options, compare};
use cdc_lab::progress::Progress;
use cdc_lab::servers::{Milvus, Mq, Spec};
use etcd_client::Permission;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use self::certs::{Authority, Files};
use self::etcd::{Etcd, ROOT};
use crate::harness::{say, tests};
use crate::lab::{PATIENCE, folder, progress, until};
use crate::plain::Plain;

tests![Alone:
    over_mutual_tls_with_logins_and_through_new_certificates,
    what_a_certificate_or_a_login_does_not_open,
];

const USER: &str = "cdc";
/// Planted: no log and no answer may show them.
const PASSWORD: &str = "hush-etcd-4711";
const TOKEN: &str = "root:Milvus";
const WRONG: u16 = 400;
const LOCKED: u16 = 401;

/// A source on an etcd with mutual TLS and users, and a standby with mutual TLS and users.
struct World {
    dir: PathBuf,
    progress: Progress,
    authority: Authority,
    etcd: Etcd,
    source: Milvus,
    target: Milvus,
    /// Of the servers.
    etcd_files: Files,
    source_files: Files,
    target_files: Files,
    /// Of milvus-cdc: as a client of etcd, and of the target.
    files: Files,
}

impl World {
    async fn start() -> Result<Self> {
        let (dir, progress) = (folder()?, progress());
        let files = |name: &str| Files::at(&dir.join("certs").join(name));
        let (etcd_files, source_files) = (files("etcd")?, files("source")?);
        let (target_files, files) = (files("target")?, files("cdc")?);
        let authority = Authority::new("first")?;
        etcd_files.write(&authority, &authority.server("etcd")?)?;
        // etcd takes the common name for the user: Milvus 2.3.5 has no setting for a password.
        source_files.write(&authority, &authority.issue(ROOT, &[])?)?;
        target_files.write(&authority, &authority.server("target")?)?;
        files.write(&authority, &authority.issue("milvus-cdc", &[])?)?;

        let lab = authority.client_tls(ROOT)?;
        let etcd = Etcd::start(dir.join("etcd"), etcd_files.clone(), lab.clone()).await?;
        let all = Permission::read("").with_all_keys();
        etcd.ask_for_logins(lab, USER, PASSWORD, &[all]).await?;
        let path = |path: &Path| path.display().to_string();
        let source = Spec::source("source", Mq::Natsmq, dir.join("source"));
        let source = etcd.used_by(source, &source_files);
        let target = Spec::standby("target", dir.join("target"))
            .set("common.security.authorizationEnabled", "true")
            .set("common.security.tlsMode", "2")
            .set("tls.serverPemPath", &path(&target_files.certificate))
            .set("tls.serverKeyPath", &path(&target_files.key))
            .set("tls.caPemPath", &path(&target_files.trusted));
        let (source, target) = tokio::try_join!(
            Milvus::start(source, &progress),
            Milvus::start(target, &progress),
        )?;
        Ok(Self {
            dir,
            progress,
            authority,
            etcd,
            source,
            target,
            etcd_files,
            source_files,
            target_files,
            files,
        })
    }

    /// milvus-cdc with these lines below `sourceConfig.etcd`.
    async fn cdc(&self, name: &str, etcd: &str) -> Result<Cdc> {
        let source = Addresses {
            rows: None,
            etcd: self.etcd.address(),
            ..Addresses::of(&self.source)
        };
        let lines: String = etcd.lines().map(|line| format!("    {line}\n")).collect();
        let edit = |yaml: String| {
            let place = "    metaSubPath: meta\n";
            yaml.replace(place, &format!("{place}{lines}"))
        };
        Cdc::start_edited(&source, self.dir.join(name), edit, &self.progress).await
    }

    /// What opens the source's etcd.
    fn etcd_settings(&self) -> String {
        etcd_settings(&self.files, PASSWORD)
    }

    async fn from(&self) -> Result<Client> {
        Client::connect("source", &self.source.uri()).await
    }

    /// The target as the lab sees it, with certificates of `authority`.
    async fn to(&self, authority: &Authority) -> Result<Client> {
        let tls = authority.client_tls("lab")?;
        let uri = self.target.secure_uri();
        Client::connect_as("target", &uri, Some(tls), Some(TOKEN)).await
    }

    /// What opens the target.
    fn open(&self) -> Value {
        json!({
            "uri": self.target.secure_uri(),
            "token": TOKEN,
            "connect_timeout": 5,
            "dial_config": {
                "ca_pem_path": self.files.trusted,
                "client_pem_path": self.files.certificate,
                "client_key_path": self.files.key,
            },
        })
    }

    /// From now on the target asks nobody for a certificate.
    async fn one_way_target(&mut self) -> Result<()> {
        let path = self.target.dir().join("configs").join("milvus.yaml");
        let yaml = std::fs::read_to_string(&path)?;
        let changed = yaml.replace("tlsMode: 2", "tlsMode: 1");
        ensure!(changed != yaml, "no tlsMode: 2 in {}", path.display());
        std::fs::write(&path, changed)?;
        self.target.restart(&self.progress).await
    }

    async fn end(mut self, mut cdc: Cdc) -> Result<()> {
        cdc.kill9().await?;
        tokio::try_join!(self.source.kill9(), self.target.kill9())?;
        self.etcd.kill9().await?;
        verdict::keep_the_rules(&self.target)?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

fn etcd_settings(files: &Files, password: &str) -> String {
    format!(
        "enableAuth: true\nusername: {USER}\npassword: \"{password}\"\n\
         enableTLS: true\ntlsCACertPath: {}\ntlsCertPath: {}\ntlsKeyPath: {}\ntlsMinVersion: 1.3\n",
        files.trusted.display(),
        files.certificate.display(),
        files.key.display(),
    )
}

fn task(param: &Value) -> Value {
    json!({ "milvus_connect_param": param, "collection_infos": [{ "name": "*" }] })
}

/// `create` is refused with this status, a message with all these words, and nothing is made.
async fn refused(cdc: &Cdc, param: &Value, status: u16, words: &[&str]) -> Result<()> {
    until("the stored tasks are recovered", async || {
        Ok(cdc.get("/readyz").await?.status == 200)
    })
    .await?;
    let body = json!({ "request_type": "create", "request_data": task(param) }).to_string();
    let reply = cdc.post(&body).await?;
    say(&format!("{}: {}", reply.status, reply.body));
    ensure!(
        reply.status == status,
        "{status} expected: {}: {}",
        reply.status,
        reply.body
    );
    for word in words {
        ensure!(
            reply.body.contains(word),
            "{word:?} is not in {}",
            reply.body
        );
    }
    let list = cdc.request("list", json!({})).await?;
    ensure!(list["tasks"] == json!([]), "nothing was made: {list}");
    Ok(())
}

/// Objects and rows are equal, and there are as many as the test thinks.
async fn equal(from: &Client, to: &Client, rows: usize) -> Result<()> {
    let options = Options {
        patience: PATIENCE,
        rows: true,
        ..Options::default()
    };
    let report = compare(from, to, options).await?;
    say(&report.to_string());
    ensure!(report.is_equal(), "source and target differ\n{report}");
    ensure!(
        report.rows() == rows as u64,
        "{rows} rows expected, {} on the source",
        report.rows()
    );
    Ok(())
}

/// Neither the log nor the answers show what was planted.
async fn keeps_secrets(cdc: &Cdc, task: &str, keys: &[&Files]) -> Result<()> {
    let mut shown = std::fs::read_to_string(cdc.log())?;
    shown += &cdc.task(task).await?.task.to_string();
    shown += &cdc.request("list", json!({})).await?.to_string();
    shown += &cdc.get("/cdc/metrics").await?.body;
    ensure!(!shown.contains(PASSWORD), "the password of etcd is shown");
    ensure!(!shown.contains(TOKEN), "the token of the target is shown");
    ensure!(!shown.contains("PRIVATE KEY"), "a key is shown");
    for files in keys {
        let key = std::fs::read_to_string(&files.key)?;
        let line = key.lines().nth(1).context("a key has lines")?;
        ensure!(!shown.contains(line), "a key is shown");
    }
    Ok(())
}

async fn over_mutual_tls_with_logins_and_through_new_certificates(
    random: &mut StdRng,
) -> Result<()> {
    let mut w = World::start().await?;
    let cdc = w.cdc("cdc", &w.etcd_settings()).await?;
    let from = w.from().await?;
    let made = cdc.create(task(&w.open())).await?;
    let mut c = Plain::create(&from, "secured", 1).await?;
    c.round(&from, random).await?;
    equal(&from, &w.to(&w.authority).await?, c.keys.len()).await?;
    verify::opens(&w).await?;
    // A target that restarts can lose what it has not flushed, and a source too: not what this is about.
    from.flush_and_wait(crate::lab::DB, c.name(), PATIENCE)
        .await?;
    until("the target flushes", async || {
        let to = w.to(&w.authority).await?;
        let segments = to.persistent_segments(crate::lab::DB, c.name()).await?;
        let rows: i64 = segments.iter().map(|(_, rows)| rows).sum();
        Ok(rows > 0)
    })
    .await?;
    keeps_secrets(&cdc, &made, &[&w.files]).await?;
    let pid = cdc.pid();

    // The target comes back with certificates of an authority that milvus-cdc does not know yet.
    let second = Authority::new("second")?;
    w.target_files.write(&second, &second.server("target")?)?;
    w.target.restart(&w.progress).await?;
    cdc.wait(
        &made,
        "it says what is wrong with the target",
        PATIENCE,
        |s| {
            let shown = s.task.to_string();
            shown.contains("not trusted") && shown.contains("dial_config.ca_pem_path")
        },
    )
    .await?;
    // And so does the source's etcd.
    w.source.stop().await?;
    w.etcd_files.write(&second, &second.server("etcd")?)?;
    w.source_files.write(&second, &second.issue(ROOT, &[])?)?;
    w.etcd.restart(second.client_tls(ROOT)?).await?;
    cdc.wait(&made, "it says what is wrong with etcd", PATIENCE, |s| {
        let shown = s.task["problems"].to_string();
        shown.contains("not trusted") && shown.contains("sourceConfig.etcd.tlsCACertPath")
    })
    .await?;
    w.source.restart(&w.progress).await?;

    // Nobody tells milvus-cdc that its files are others now.
    w.files.write(&second, &second.issue("milvus-cdc", &[])?)?;
    let from = w.from().await?;
    until("the source loads it again", async || {
        Ok(c.load(&from).await.is_ok())
    })
    .await?;
    c.round(&from, random).await?;
    let mut late = Plain::create(&from, "late", 1).await?;
    late.round(&from, random).await?;
    let rows = c.keys.len() + late.keys.len();
    equal(&from, &w.to(&second).await?, rows).await?;
    ensure!(cdc.pid() == pid && pid.is_some(), "it was started again");
    cdc.wait(&made, "nothing is wrong any more", PATIENCE, |s| {
        s.state() == "Running" && s.task["problems"] == json!([])
    })
    .await?;
    keeps_secrets(&cdc, &made, &[&w.files]).await?;
    w.end(cdc).await
}

async fn what_a_certificate_or_a_login_does_not_open(random: &mut StdRng) -> Result<()> {
    let mut w = World::start().await?;
    let strange = Authority::new("strange")?;
    let wrong = Files::at(&w.dir.join("certs").join("wrong"))?;
    wrong.write(&strange, &strange.issue("milvus-cdc", &[])?)?;

    // The source's etcd.
    let good = &w.files;
    let strangers_trust = Files {
        trusted: wrong.trusted.clone(),
        ..good.clone()
    };
    let strangers_client = Files {
        trusted: good.trusted.clone(),
        ..wrong.clone()
    };
    let without_client: String = w
        .etcd_settings()
        .lines()
        .filter(|line| !line.contains("tlsCertPath") && !line.contains("tlsKeyPath"))
        .map(|line| format!("{line}\n"))
        .collect();
    let cases = [
        (
            "trust",
            etcd_settings(&strangers_trust, PASSWORD),
            WRONG,
            ["not trusted", "sourceConfig.etcd.tlsCACertPath"],
        ),
        (
            "client",
            etcd_settings(&strangers_client, PASSWORD),
            WRONG,
            ["refused our certificate", "sourceConfig.etcd.tlsCertPath"],
        ),
        (
            "no-client",
            without_client,
            WRONG,
            ["refused our certificate", "sourceConfig.etcd.tlsCertPath"],
        ),
        (
            "password",
            etcd_settings(good, "wrong"),
            LOCKED,
            ["login refused", "sourceConfig.etcd.username and password"],
        ),
    ];
    for (name, settings, status, words) in cases {
        let mut cdc = w.cdc(&format!("cdc-{name}"), &settings).await?;
        refused(&cdc, &w.open(), status, &words).await?;
        cdc.kill9().await?;
    }

    // The target.
    let cdc = w.cdc("cdc", &w.etcd_settings()).await?;
    let open = w.open();
    let with = |changes: &[(&str, Value)]| {
        let mut param = open.clone();
        for (key, value) in changes {
            match key.strip_prefix("dial_config.") {
                Some(key) => param["dial_config"][key] = value.clone(),
                None => param[*key] = value.clone(),
            }
        }
        param
    };
    let trust = with(&[("dial_config.ca_pem_path", json!(wrong.trusted))]);
    let words = ["not trusted", "dial_config.ca_pem_path"];
    refused(&cdc, &trust, WRONG, &words).await?;
    let nobody = with(&[
        ("dial_config.client_pem_path", json!("")),
        ("dial_config.client_key_path", json!("")),
    ]);
    let words = ["refused our certificate", "dial_config.client_pem_path"];
    refused(&cdc, &nobody, WRONG, &words).await?;
    let stranger = with(&[
        ("dial_config.client_pem_path", json!(wrong.certificate)),
        ("dial_config.client_key_path", json!(wrong.key)),
    ]);
    refused(&cdc, &stranger, WRONG, &words).await?;
    let mixed = with(&[("dial_config.client_key_path", json!(wrong.key))]);
    let words = ["do not belong together", "dial_config.client_key_path"];
    refused(&cdc, &mixed, WRONG, &words).await?;
    let name = with(&[("dial_config.server_name", json!("elsewhere.example"))]);
    let words = ["not for this name", "dial_config.server_name"];
    refused(&cdc, &name, WRONG, &words).await?;
    let password = with(&[("token", json!("root:wrong"))]);
    refused(&cdc, &password, LOCKED, &["milvus_connect_param.token"]).await?;
    // The source has no TLS.
    let plain = w
        .source
        .uri()
        .replace("http://127.0.0.1", "https://localhost");
    let plain = with(&[("uri", json!(plain))]);
    let words = ["no TLS", "leave out https:// and enable_tls"];
    refused(&cdc, &plain, WRONG, &words).await?;

    // What remains is right: one-way TLS, the server's own certificate instead of its authority, a login in two parts.
    w.one_way_target().await?;
    let right = with(&[
        ("token", Value::Null),
        ("username", json!("root")),
        ("password", json!("Milvus")),
        ("dial_config.ca_pem_path", json!("")),
        (
            "dial_config.server_pem_path",
            json!(w.target_files.certificate),
        ),
        ("dial_config.client_pem_path", json!("")),
        ("dial_config.client_key_path", json!("")),
        ("dial_config.server_name", json!("127.0.0.1")),
    ]);
    let made = cdc.create(task(&right)).await?;
    let from = w.from().await?;
    let mut c = Plain::create(&from, "opened", 2).await?;
    c.round(&from, random).await?;
    equal(&from, &w.to(&w.authority).await?, c.keys.len()).await?;
    keeps_secrets(&cdc, &made, &[&w.files]).await?;
    w.end(cdc).await
}
