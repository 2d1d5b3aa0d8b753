//! The command line against a server.

use std::collections::BTreeMap;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::secret::Secret;
use cdc_core::select::Name;
use cdc_core::task::{Choice, CollectionState, OnConflict};
use milvus_cdc::config::access::{Access, ApiToken, Role};
use serde_json::{Value, json};

use crate::server::{Server, access, collection, start, start_with};

pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// Runs the program, with nothing of this process' own settings.
async fn run(args: &[&str], environment: &[(&str, &str)]) -> Done {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_milvus-cdc"));
    command.args(args);
    for name in ["SERVER", "TOKEN", "CA_CERT", "TARGET_TOKEN"] {
        command.env_remove(format!("MILVUS_CDC_{name}"));
    }
    for name in [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    let output = command.output().await.unwrap();
    Done {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) async fn task(server: &Server, args: &[&str]) -> Done {
    let address = format!("http://{}", server.address);
    let mut all = vec!["task", "--server", &address];
    all.extend(args);
    run(&all, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tasks_whole_life() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let login = dir.path().join("login");
    std::fs::write(&login, "root:hush-hush\n").unwrap();
    let login = format!("file:{}", login.display());
    let create = [
        "create",
        "--target",
        "http://target:19530",
        "--target-token",
        &login,
        "-c",
        "db.*",
        "-c",
        "a",
        "--id",
        "east",
        "--start",
        "now",
        "--on-conflict",
        "adopt",
        "-o",
        "json",
    ];
    let made = task(&server, &create).await.json();
    assert_eq!(
        made["collections"],
        json!([{"database": "db", "name": "*"}, {"database": "default", "name": "a"}])
    );
    assert_eq!(
        (&made["start"], &made["on_conflict"]),
        (&json!("now"), &json!("adopt"))
    );
    let token = server.spec("east").target.token;
    assert_eq!(token.expose(), "root:hush-hush");
    assert_eq!(task(&server, &create).await.json(), made, "repeated");
    let other = task(
        &server,
        &["create", "--target", "http://target:1", "--id", "east"],
    )
    .await;
    assert!(
        other.code == 6 && other.err.contains("east"),
        "{}",
        other.err
    );
    let list = task(&server, &["list"]).await;
    assert!(
        list.out.contains("east") && list.out.contains("db.*,default.a"),
        "{}",
        list.out
    );
    assert_eq!(
        task(&server, &["list", "-o", "json"]).await.json()[0]["id"],
        "east"
    );

    let new = dir.path().join("new");
    std::fs::write(&new, "root:hush-new\n").unwrap();
    let new = format!("file:{}", new.display());
    let edit = [
        "edit",
        "east",
        "--target-token",
        &new,
        "-c",
        "b",
        "-o",
        "json",
    ];
    let edited = task(&server, &edit).await.json();
    assert_eq!(
        edited["collections"],
        json!([{"database": "db", "name": "*"}, {"database": "default", "name": "a"}, {"database": "default", "name": "b"}])
    );
    assert_eq!(server.spec("east").target.token.expose(), "root:hush-new");
    let nothing = task(&server, &["edit", "east"]).await;
    assert!(
        nothing.code != 0 && nothing.err.contains("nothing to change"),
        "{}",
        nothing.err
    );
    let none = task(&server, &["edit", "none", "-c", "x"]).await;
    assert_eq!(none.code, 5, "{}", none.err);

    *server.fake.collections.lock() = vec![collection(
        5,
        "db",
        "c",
        CollectionState::Conflict {
            problem: Problem::new(ErrorClass::Conflict, "it is there", "choose"),
            choices: vec![],
        },
    )];
    let get = task(&server, &["get", "east"]).await;
    assert!(
        get.out.contains("db.c") && get.out.contains("answer with on_conflict"),
        "{}",
        get.out
    );
    let early = task(
        &server,
        &["watch", "east", "--until-streaming", "--for", "1"],
    )
    .await;
    assert!(
        early.code == 8 && early.out.contains("Conflict 1"),
        "{} {}",
        early.out,
        early.err
    );
    assert_eq!(
        task(&server, &["resume", "east", "--answer", "db.c=adopt"])
            .await
            .code,
        0
    );
    let adopt = Choice::Conflict(OnConflict::Adopt);
    assert_eq!(
        *server.fake.chosen.lock(),
        [("db".to_owned(), "c".to_owned(), adopt)]
    );
    let streaming = CollectionState::Streaming {
        lag_seconds: 0.3,
        raised: false,
    };
    *server.fake.collections.lock() = vec![collection(5, "db", "c", streaming)];
    let watched = task(
        &server,
        &["watch", "east", "--until-streaming", "--for", "60"],
    )
    .await;
    assert_eq!(watched.code, 0, "{}", watched.err);
    assert!(
        watched
            .out
            .contains("running  lag 1.5 s  rows 7  Streaming 1"),
        "{}",
        watched.out
    );

    let paused = task(
        &server,
        &["pause", "east", "--reason", "disk swap", "-o", "json"],
    )
    .await;
    assert_eq!(paused.json()["reason"], "disk swap");
    assert_eq!(task(&server, &["resume", "east"]).await.code, 0);
    let deleted = task(&server, &["delete", "east"]).await;
    assert_eq!((deleted.code, deleted.out.as_str()), (0, "deleted east\n"));
    for args in [
        vec!["get", "east"],
        vec!["delete", "east"],
        vec!["watch", "east"],
        vec!["get", "../x"],
    ] {
        let gone = task(&server, &args).await;
        assert!(
            gone.code == 5 && gone.err.contains("no task"),
            "{args:?}: {} {}",
            gone.code,
            gone.err
        );
    }
    let bad = task(&server, &["create", "--target", "ftp://h", "-c", "1"]).await;
    assert!(
        bad.code == 7 && bad.err.contains("target.uri"),
        "{}",
        bad.err
    );
    for wrong in [
        vec!["resume", "east", "--answer", "x=fly"],
        vec!["fly"],
        vec!["get"],
    ] {
        assert_eq!(task(&server, &wrong).await.code, 2, "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_from_the_environment_or_a_file() {
    const TOKEN: &str = "hush-hush-0123456789";
    let token = |name: &str, token: &str, role| ApiToken {
        name: name.to_owned(),
        token: Secret::new(token),
        role,
    };
    let access = Access {
        tokens: vec![
            token("full", TOKEN, Role::Full),
            token("read", "read-0123456789abc", Role::Read),
        ],
        ..access()
    };
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    let address = format!("http://{}", server.address);
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let of_file = format!("file:{}", file.display());
    let here = ("MILVUS_CDC_SERVER", address.as_str());
    let list = ["task", "list"];
    assert_eq!(run(&list, &[here]).await.code, 4);
    for token in [TOKEN, &of_file] {
        let done = run(&list, &[here, ("MILVUS_CDC_TOKEN", token)]).await;
        assert_eq!(done.code, 0, "{}", done.err);
    }
    assert_eq!(
        run(&["task", "list", "--token", &of_file], &[here])
            .await
            .code,
        0
    );
    let reads = ("MILVUS_CDC_TOKEN", "read-0123456789abc");
    assert_eq!(run(&list, &[here, reads]).await.code, 0);
    let refused = run(&["task", "delete", "x"], &[here, reads]).await;
    assert!(
        refused.code == 4 && refused.err.contains("may only read"),
        "{}",
        refused.err
    );
    let secret = ("MILVUS_CDC_TOKEN", TOKEN);
    for args in [
        vec!["task", "--help"],
        vec!["task", "list", "--server", "http://127.0.0.1:1"],
    ] {
        let done = run(&args, &[secret]).await;
        assert!(
            !format!("{}{}", done.out, done.err).contains("hush"),
            "{}{}",
            done.out,
            done.err
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_told_apart() {
    let done = run(&["task", "list", "--server", "http://127.0.0.1:1"], &[]).await;
    assert!(
        done.code == 3 && done.err.contains("http://127.0.0.1:1"),
        "{}",
        done.err
    );
    let done = run(&["task", "list", "--server", "127.0.0.1"], &[]).await;
    assert!(
        done.code == 2 && done.err.contains("--server"),
        "{}",
        done.err
    );
    for shell in ["bash", "zsh", "fish"] {
        let done = run(&["completions", shell], &[]).await;
        assert!(done.code == 0 && done.out.contains("watch"), "{shell}");
    }
}

/// A password on the command line could be read by everybody on the machine: there is no option for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_targets_etcd_is_given_whole_or_not_at_all() {
    let plain = ["--target-etcd", "http://h:1"];
    for (more, part) in [
        (
            vec!["--target-etcd-user", "u"],
            "MILVUS_CDC_TARGET_ETCD_PASSWORD",
        ),
        (
            vec!["--target-etcd-ca-cert", "ca.pem"],
            "https://host:port expected",
        ),
        (vec!["--target-etcd-cert", "c.pem"], "--target-etcd-key"),
        (
            vec!["--target-etcd-password", "hush"],
            "unexpected argument",
        ),
    ] {
        let mut args = vec!["promote", "t"];
        args.extend(plain);
        args.extend(more);
        let done = run(&args, &[]).await;
        assert!(done.code == 2 && done.err.contains(part), "{}", done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_names_and_what_is_left_out_are_flags() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    *server.fake.present.lock() = ["a", "tmp_1", "b"].map(|n| Name::new("db", n)).to_vec();
    let wanted = [
        "--target",
        "http://target:19530",
        "--id",
        "east",
        "--include",
        "db.*",
        "--exclude",
        "*.tmp_*",
        "--exclude",
        "db./b+/",
        "--map",
        "db.*=copy.{}_1",
        "--skip",
        "drop_collection,release",
        "-o",
        "json",
    ];
    let with = |command: &'static str| [&[command][..], &wanted].concat();
    let plan = task(&server, &with("plan")).await.json();
    assert_eq!(
        plan["collections"],
        json!([{"source": "db.a", "target": "copy.a_1", "rule": 0, "problems": []}])
    );
    assert_eq!(plan["left_out"][0]["source"], "db.b");
    assert!(server.fake.running.lock().is_empty(), "it only looks");
    let made = task(&server, &with("create")).await.json();
    assert_eq!(
        made["collections"],
        json!([{"include": ["db.*"]}, {"exclude": ["*.tmp_*", "db./b+/"]}])
    );
    assert_eq!(
        made["mapping"],
        json!([{"from": "db.*", "to": "copy.{}_1"}])
    );
    assert_eq!(
        made["skip_operations"],
        json!(["drop_collection", "release"])
    );
    let list = task(&server, &["list"]).await;
    assert!(list.out.contains("db.*,!*.tmp_*,!db./b+/"), "{}", list.out);
    // An edit goes behind what is there; names and what is left out are replaced.
    let edit = [
        "edit",
        "east",
        "--include",
        "db.tmp_7",
        "--map",
        "none",
        "--skip",
        "none",
        "-o",
        "json",
    ];
    let edited = task(&server, &edit).await.json();
    assert_eq!(edited["collections"][2], json!({"include": ["db.tmp_7"]}));
    assert_eq!(
        (&edited["mapping"], &edited["skip_operations"]),
        (&Value::Null, &Value::Null)
    );
    // Only excludes: all but these.
    let but = [
        "plan",
        "--target",
        "http://other:1",
        "--exclude",
        "db.a",
        "-o",
        "json",
    ];
    let plan = task(&server, &but).await.json();
    assert_eq!(plan["left_out"], json!([{"source": "db.a", "rule": 1}]));
    // What speaks against it has a code.
    *server.fake.there.lock() = BTreeMap::from([(Name::new("db", "a"), true)]);
    let table = task(&server, &["plan", "--target", "http://other:1"]).await;
    assert_eq!(table.code, 7, "{}", table.err);
    assert!(table.out.contains("with rows"), "{}", table.out);
    for (bad, code, word) in [
        (&["--map", "db.a"][..], 2, "FROM=TO"),
        (&["--skip", "drop"], 2, "drop_collection"),
        (&["--skip", "none,load"], 2, "none alone"),
        (&["--map", "none", "--map", "a=b"], 2, "FROM=TO"),
        (&["-c", "a", "--include", "db.*"], 2, "--include"),
        (&["--include", "db./(/"], 7, "is no regex"),
    ] {
        let all = [&["create", "--target", "http://t:1"][..], bad].concat();
        let done = task(&server, &all).await;
        assert_eq!(done.code, code, "{bad:?}: {}", done.err);
        assert!(done.err.contains(word), "{bad:?}: {}", done.err);
    }
}
