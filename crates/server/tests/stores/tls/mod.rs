//! The stores over TLS and with logins: what works, and what must not.

mod certs;
mod secured;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::ids::{PChannel, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, contract};
use cdc_lab::servers::stores::PASSWORD;

use self::certs::Authority;
use self::secured::{HOST, Secured, Visitor, modes};
use crate::place::{Handle, Kind, Place, take};
use crate::program::binary;

const SURELY: Duration = Duration::from_secs(60);
const WRONG: &str = "hunter2";

fn put(n: u64) -> Vec<Change> {
    vec![Change::PutChannel {
        task: TaskId::new("t"),
        channel: PChannel::new("ch"),
        progress: contract::progress(n, n, n),
        clean: false,
    }]
}

async fn read(store: &dyn ProgressStore) -> Option<u64> {
    let progress = store.load(&TaskId::new("t")).await.unwrap();
    progress.channels.values().next().map(|p| p.applied.0)
}

/// Takes it, writes, reads back from elsewhere, renews and releases.
async fn goes_there(place: &Secured, root: &str, visitor: &Visitor) {
    let config = place.store(root, visitor).unwrap();
    let backend = config.open().await.unwrap();
    let term = take(&backend, "owner", SURELY).await;
    backend.of_term(&term).commit(put(7)).await.unwrap();
    let other = config.open().await.unwrap();
    assert_eq!(read(other.as_ref()).await, Some(7));
    assert!(backend.renew(&term).await.unwrap());
    backend.release(&term).await.unwrap();
    take(&other, "another", SURELY).await;
}

/// Why it is refused; the password is not in it.
async fn refused(place: &Secured, visitor: &Visitor) -> String {
    let begun = Instant::now();
    let config = place.store("trefused", visitor).unwrap();
    let error = match config.open().await {
        Ok(_) => panic!("it was let in"),
        Err(error) => format!("{error:#}"),
    };
    assert!(begun.elapsed() < SURELY, "{:?}", begun.elapsed());
    println!("{error}");
    for password in [WRONG, PASSWORD, "p%40ss"] {
        assert!(!error.contains(password), "{error}");
    }
    error
}

fn has(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

pub(crate) async fn the_contract_with_certificates_of_both_and_a_login(kind: Kind) {
    let place = Secured::start(kind, true).await;
    let visitor = place.visitor(true);
    goes_there(&place, "tessence", &visitor).await;
    let next = Cell::new(0);
    contract::suite(async || {
        next.set(next.get() + 1);
        let config = place.store(&format!("t{}", next.get()), &visitor).unwrap();
        let backend = config.open().await.unwrap();
        let term = take(&backend, "owner", Duration::from_secs(3600)).await;
        Arc::new(Handle(backend.of_term(&term)))
    })
    .await;
}

pub(crate) async fn what_must_not_work_is_named(kind: Kind) {
    let place = Secured::start(kind, true).await;
    let right = place.visitor(true);
    // One of another name, and one that only calls itself the same.
    let strangers = [Authority::of_name("a stranger"), Authority::new()];
    let names = match kind {
        Kind::Etcd => Settings {
            plain: &["metaStoreConfig.etcd.enableTLS: true"],
            trusted: "metaStoreConfig.etcd.tlsCACertPath",
            login: "metaStoreConfig.etcd.username and password",
            own: "metaStoreConfig.etcd.tlsCertPath",
            host: "metaStoreConfig.etcd.address",
        },
        Kind::Mysql => Settings {
            plain: &["tls=true in metaStoreConfig.mysqlSourceUrl"],
            trusted: "metaStoreConfig.mysqlTLSCACertPath",
            login: "the password in metaStoreConfig.mysqlSourceUrl",
            own: "metaStoreConfig.mysqlTLSCertPath and mysqlTLSKeyPath",
            host: "name a host in metaStoreConfig.mysqlSourceUrl",
        },
        _ => Settings {
            plain: &["sslmode=verify-full in metaStoreConfig.postgresSourceUrl"],
            trusted: "sslrootcert of metaStoreConfig.postgresSourceUrl",
            login: "the password in metaStoreConfig.postgresSourceUrl",
            own: "sslcert and sslkey of metaStoreConfig.postgresSourceUrl",
            host: "name a host in metaStoreConfig.postgresSourceUrl",
        },
    };

    let plain = Visitor {
        mode: modes(kind).0,
        trusted: None,
        identity: None,
        ..right.clone()
    };
    has(&refused(&place, &plain).await, names.plain);

    // Without one those of the system count, which know nothing of it.
    let others = strangers
        .iter()
        .map(|of| Some(place.write("other.pem", &of.pem())));
    for trusted in [None].into_iter().chain(others) {
        let untrusting = Visitor {
            trusted,
            ..right.clone()
        };
        has(&refused(&place, &untrusting).await, &[names.trusted]);
    }

    let wrong_password = Visitor {
        password: WRONG,
        ..right.clone()
    };
    has(&refused(&place, &wrong_password).await, &[names.login]);

    let unknown = |of: &Authority| Some(place.write_pair("other", &of.issue("a client")));
    for identity in [None].into_iter().chain(strangers.iter().map(unknown)) {
        let not_known = Visitor {
            identity,
            ..right.clone()
        };
        has(&refused(&place, &not_known).await, &[names.own]);
    }

    let by_address = Visitor {
        host: "127.0.0.1",
        ..right.clone()
    };
    has(&refused(&place, &by_address).await, &[names.host, HOST]);

    // None of these was for another reason.
    goes_there(&place, "tright", &right).await;
}

struct Settings {
    plain: &'static [&'static str],
    trusted: &'static str,
    login: &'static str,
    own: &'static str,
    host: &'static str,
}

pub(crate) async fn every_mode_does_what_it_says(kind: Kind) {
    let place = Secured::start(kind, false).await;
    let right = place.visitor(false);
    goes_there(&place, "tfull", &right).await;
    let stranger = place.write("stranger.pem", &Authority::new().pem());
    let plain = Visitor {
        mode: modes(kind).0,
        trusted: None,
        ..right.clone()
    };
    let said: &[&str] = match kind {
        Kind::Mysql => &["only over TLS: set tls=true in metaStoreConfig.mysqlSourceUrl"],
        Kind::Postgres => &["only over TLS: set sslmode=verify-full in metaStoreConfig"],
        _ => &["metaStoreConfig.etcd.enableTLS: true"],
    };
    has(&refused(&place, &plain).await, said);
    // The server takes nobody without TLS: whoever gets in has it.
    let blind: &[&'static str] = match kind {
        Kind::Mysql => &["skip-verify", "preferred"],
        Kind::Postgres => &["require", "prefer"],
        _ => &[],
    };
    for mode in blind {
        let visitor = Visitor {
            mode,
            host: "127.0.0.1",
            trusted: None,
            ..right.clone()
        };
        goes_there(&place, &format!("t{}", mode.replace('-', "")), &visitor).await;
    }
    if kind == Kind::Postgres {
        // With an authority, but for whatever name.
        for mode in ["require", "verify-ca"] {
            let visitor = Visitor {
                mode,
                host: "127.0.0.1",
                ..right.clone()
            };
            goes_there(&place, &format!("tca{}", mode.replace('-', "")), &visitor).await;
            let visitor = Visitor {
                trusted: Some(stranger.clone()),
                ..visitor
            };
            has(&refused(&place, &visitor).await, &["sslrootcert"]);
        }
    }
}

/// Another reader, with connections of its own to a MySQL.
pub(crate) async fn import_go_names_it_too(kind: Kind) {
    let place = Secured::start(kind, false).await;
    let right = place.visitor(false);
    let untrusting = Visitor {
        trusted: None,
        ..right.clone()
    };
    let import = async |visitor: &Visitor| {
        let text = place.yaml("timport", visitor);
        let source = "sourceConfig: {etcd: {address: 'http://127.0.0.1:1'}, natsmq: {address: 'nats://127.0.0.1:1'}}\n";
        let config = place.write("cdc.yaml", &format!("{text}{source}"));
        let mut command = tokio::process::Command::new(binary());
        command.args(["import-go", "--config"]).arg(config);
        command.kill_on_drop(true);
        let ended = tokio::time::timeout(SURELY, command.output()).await;
        let output = ended.unwrap().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8(said).unwrap())
    };
    let (status, said) = import(&untrusting).await;
    println!("{status}: {said}");
    assert!(!status.success() && !said.contains(PASSWORD), "{said}");
    let setting = match kind {
        Kind::Mysql => "metaStoreConfig.mysqlTLSCACertPath",
        _ => "metaStoreConfig.etcd.tlsCACertPath",
    };
    has(&said, &["the Go server's store", setting]);
    // With its authority that store is read; then there is no source.
    let (_, said) = import(&right).await;
    has(&said, &["sourceConfig.etcd"]);
    assert!(!said.contains("the Go server's store"), "{said}");
}

/// New authority, new certificates on both sides; the same paths, and no restart of ours.
pub(crate) async fn changed_certificates_count_from_the_next_connection(kind: Kind) {
    let mut place = Secured::start(kind, true).await;
    let visitor = place.visitor(true);
    let config = place.store("tchanged", &visitor).unwrap();
    let backend = config.open().await.unwrap();
    let term = take(&backend, "owner", Duration::from_secs(3600)).await;
    let store = backend.of_term(&term);
    store.commit(put(1)).await.unwrap();

    place.renew(Authority::new(), true).await;
    // A connection that the restart broke may be found broken first.
    let end = Instant::now() + SURELY;
    loop {
        let error = store.commit(put(2)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        if error.to_string().contains("UnknownIssuer") || error.to_string().contains("BadSignature")
        {
            break;
        }
        assert!(Instant::now() < end, "{error}");
    }

    // Into the same files.
    assert_eq!(place.visitor(true).trusted, visitor.trusted);
    let end = Instant::now() + SURELY;
    while let Err(error) = store.commit(put(3)).await {
        assert!(Instant::now() < end, "{error}");
    }
    assert_eq!(read(store.as_ref()).await, Some(3));
    assert!(backend.renew(&term).await.unwrap(), "the term went on");
}

/// TLS to a server that has none: not a plain connection instead, and said with what to set.
pub(crate) async fn asked_of_a_server_that_has_none(place: &mut Place) {
    let server = place.server.as_ref().unwrap();
    let url = server.url();
    let (text, parts): (String, &[&str]) = match place.kind {
        Kind::Postgres => (
            format!("storeType: postgres, postgresSourceUrl: '{url}?sslmode=require'"),
            &["sslmode=disable in metaStoreConfig.postgresSourceUrl"],
        ),
        Kind::Mysql => (
            format!("storeType: mysql, mysqlSourceUrl: '{url}&tls=true'"),
            &["tls=false in metaStoreConfig.mysqlSourceUrl"],
        ),
        _ => (
            format!(
                "storeType: etcd, etcd: {{address: '{}'}}",
                url.replace("http://", "https://")
            ),
            &["http:// without metaStoreConfig.etcd.enableTLS"],
        ),
    };
    let store = |text: &str| {
        crate::place::parse(&format!("metaStoreConfig: {{rootPath: tnone, {text}}}\n")).unwrap()
    };
    let error = match store(&text).open().await {
        Ok(_) => panic!("it went on without TLS"),
        Err(error) => format!("{error:#}"),
    };
    println!("{error}");
    has(&error, parts);
    // What may do without, does.
    let preferred = match place.kind {
        Kind::Postgres => text.replace("sslmode=require", "sslmode=prefer"),
        Kind::Mysql => text.replace("tls=true", "tls=preferred"),
        _ => return,
    };
    store(&preferred).open().await.unwrap();
}
