//! `milvus-cdc verify` against a target behind mutual TLS and a login.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::command;

use super::{TOKEN, World};
use crate::harness::say;

const LIMIT: Duration = Duration::from_secs(120);

/// What opens the target opens it to `verify`; what does not is named, with its code, and the login is not shown.
pub(super) async fn opens(w: &World) -> Result<()> {
    let file = |name: &str, text: &str| -> Result<String> {
        let path = w.dir.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (right, wrong) = (file("login", TOKEN)?, file("wrong", "root:hush-4711")?);
    let path = |path: &std::path::Path| path.display().to_string();
    let trust = ["--target-ca-cert".to_owned(), path(&w.files.trusted)];
    let client = [
        "--target-client-cert".to_owned(),
        path(&w.files.certificate),
        "--target-client-key".to_owned(),
        path(&w.files.key),
    ];
    let login = |file: &str| ["--target-token-file".to_owned(), file.to_owned()];
    let cases = [
        (
            0,
            "are equal",
            [&trust[..], &client, &login(&right)].concat(),
        ),
        (
            4,
            "--target-token-file",
            [&trust[..], &client, &login(&wrong)].concat(),
        ),
        (4, "--target-token-file", [&trust[..], &client].concat()),
        (
            3,
            "--target-client-cert",
            [&trust[..], &login(&right)].concat(),
        ),
        (
            3,
            "--target-ca-cert",
            [&client[..], &login(&right)].concat(),
        ),
    ];
    let (source, target) = (w.source.uri(), w.target.secure_uri());
    for (code, words, more) in &cases {
        let mut args = vec!["verify", "--source", &source, "--target", &target];
        args.extend(more.iter().map(String::as_str));
        let said = command(&args, LIMIT).await?;
        let all = format!("{}{}", said.stdout, said.stderr);
        say(&format!("{more:?}: {:?} {all}", said.code));
        let found = said.code.context("ended by a signal")?;
        ensure!(
            found == *code && all.contains(words),
            "{more:?}: {found} {all}"
        );
        ensure!(
            !all.contains("hush") && !all.contains(TOKEN),
            "a login is shown: {all}"
        );
    }
    Ok(())
}
