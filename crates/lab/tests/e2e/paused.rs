//! A task that is paused, over and over: what it leaves behind in the process, and what is told of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;

use crate::harness::{say, tests};
use crate::lab::{Lab, until};
use crate::plain::Plain;

tests![Test: pauses_leave_nothing_behind, the_room_in_the_queue_is_told];

const PAUSES: usize = 40;
/// Connections that are kept for the next request come and go by ones.
const MORE: usize = 3;

/// What a process holds, without its store's connections: SQLite's pool opens up to four as calls
/// meet, each with a thread and two files of its own, and keeps them for minutes.
#[derive(Debug, Clone, Copy)]
struct Held {
    files: usize,
    /// Of these.
    sockets: usize,
    threads: usize,
    /// Of a processor, so far.
    busy: Duration,
}

impl Held {
    fn of(lab: &Lab) -> Result<Self> {
        let pid = lab.cdc.pid().context("milvus-cdc runs")?;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
        // One may be closed between its listing and the look at it.
        let links: Vec<_> = files
            .filter_map(|f| std::fs::read_link(f.ok()?.path()).ok())
            .map(|link| link.to_string_lossy().into_owned())
            .filter(|link| !link.contains(".db"))
            .collect();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?;
        let threads = threads
            .filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("comm")).ok())
            .filter(|name| !name.starts_with("sqlx-sqlite"));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("fields of stat")?.1;
        let field = |n: usize| -> Result<u64> {
            let text = fields.split(' ').nth(n).context("a field of stat")?;
            Ok(text.parse()?)
        };
        Ok(Self {
            files: links.len(),
            sockets: links
                .iter()
                .filter(|link| link.starts_with("socket:"))
                .count(),
            threads: threads.count(),
            // utime and stime, in hundredths of a second.
            busy: Duration::from_millis(10 * (field(11)? + field(12)?)),
        })
    }
}

async fn pauses_leave_nothing_behind(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut c = Plain::create(&from, "paused", 2).await?;
    c.insert(&from, "", 10, random).await?;
    lab.wait_state(&lab.task, c.name(), "Streaming").await?;
    // Everything there is at work once, before it is counted.
    for _ in 0..2 {
        lab.cdc.pause(&lab.task).await?;
        lab.cdc.resume(&lab.task).await?;
        lab.wait_state(&lab.task, c.name(), "Streaming").await?;
    }
    let before = Held::of(lab)?;
    for n in 0..PAUSES {
        lab.cdc.pause(&lab.task).await?;
        lab.cdc.resume(&lab.task).await?;
        // Some before anything is connected again.
        if n % 4 == 0 {
            c.insert(&from, "", 1, random).await?;
            lab.wait_state(&lab.task, c.name(), "Streaming").await?;
        }
    }
    lab.wait_state(&lab.task, c.name(), "Streaming").await?;
    let mut after = before;
    let back = until("files, connections and threads are as before", async || {
        after = Held::of(lab)?;
        let more = |was: usize, is: usize| is > was + MORE;
        Ok(!more(before.files, after.files)
            && !more(before.sockets, after.sockets)
            && !more(before.threads, after.threads))
    });
    back.await
        .with_context(|| format!("before {PAUSES} pauses {before:?}, behind them {after:?}"))?;
    say(&format!("{PAUSES} pauses: {before:?}, then {after:?}"));
    // Only told: the machine is busy with other things.
    for what in ["running", "paused"] {
        if what == "paused" {
            lab.cdc.pause(&lab.task).await?;
        }
        let begun = Held::of(lab)?.busy;
        let time = idle_for();
        tokio::time::sleep(time).await;
        let busy = Held::of(lab)?.busy - begun;
        say(&format!(
            "idle and {what}: {busy:?} of a processor in {time:?}, {:.2} %",
            100.0 * busy.as_secs_f64() / time.as_secs_f64()
        ));
    }
    lab.cdc.resume(&lab.task).await?;
    lab.equal_rows(c.keys.len()).await
}

/// Longer with `CDC_E2E_IDLE_SECONDS`.
fn idle_for() -> Duration {
    let seconds = std::env::var("CDC_E2E_IDLE_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Of a paused task too: the queue of Milvus 2.3.5's natsmq says how long it keeps its messages.
async fn the_room_in_the_queue_is_told(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut c = Plain::create(&from, "kept", 2).await?;
    c.insert(&from, "", 10, random).await?;
    lab.equal_rows(10).await?;
    let path = format!("/api/v1/tasks/{}", lab.task);
    let mut last = f64::MAX;
    for paused in [false, true] {
        if paused {
            lab.cdc.pause(&lab.task).await?;
        }
        let mut told = serde_json::Value::Null;
        until("it is told", async || {
            let (_, task) = lab.cdc.rest(&path, None).await?;
            told = task["progress"]["queue"].clone();
            Ok(told.as_array().is_some_and(|list| list.len() >= 2))
        })
        .await?;
        say(&told.to_string());
        for one in told.as_array().context("a list")? {
            let number = |place: &str, what: &str| one[place][what].as_f64();
            let kept = number("applied", "kept_seconds").context("what it holds before")?;
            ensure!((0.0..3600.0).contains(&kept), "{one}");
            // 72 h by Milvus' default.
            let all = one["retention_seconds"].as_f64().context("retention")?;
            let left = number("applied", "left_seconds").context("what is left")?;
            ensure!(
                all == 72.0 * 3600.0 && left < all && left > all - 120.0,
                "{one}"
            );
            last = last.min(left);
            // Not before something is known to be flushed.
            let durable = number("durable", "left_seconds");
            ensure!(durable.is_none_or(|durable| durable <= left), "{one}");
        }
    }
    let metrics = lab.cdc.get("/cdc/metrics").await?;
    let line = format!("milvus_cdc_queue_left_seconds{{task_id=\"{}\"", lab.task);
    ensure!(metrics.body.contains(&line), "{}", metrics.body);
    lab.cdc.resume(&lab.task).await
}
