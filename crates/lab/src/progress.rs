//! What is being waited for, shown as spinners on a terminal and as plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// Shows steps that take a while. Cheap to clone; all clones share one display.
#[derive(Clone)]
pub struct Progress {
    inner: Arc<Inner>,
}

struct Inner {
    out: Out,
    begun: Mutex<HashMap<String, (Instant, Option<ProgressBar>)>>,
}

enum Out {
    Bars(MultiProgress),
    Lines,
    Silent,
}

impl Progress {
    /// Spinners if standard error is a terminal, else one line at the beginning and one at the end of each step.
    pub fn auto() -> Self {
        Self::new(if std::io::stderr().is_terminal() {
            Out::Bars(MultiProgress::new())
        } else {
            Out::Lines
        })
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self::new(Out::Silent)
    }

    fn new(out: Out) -> Self {
        Self {
            inner: Arc::new(Inner {
                out,
                begun: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// A step begins. Several may be under way at once; the text tells them apart.
    pub fn begin(&self, what: &str) {
        let bar = match &self.inner.out {
            Out::Bars(all) => {
                let bar = all.add(ProgressBar::new_spinner().with_message(what.to_owned()));
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
            Out::Lines => {
                eprintln!("  {what} ...");
                None
            }
            Out::Silent => None,
        };
        self.inner
            .begun
            .lock()
            .insert(what.to_owned(), (Instant::now(), bar));
    }

    /// The step has ended well.
    pub fn done(&self, what: &str) {
        let Some((since, bar)) = self.inner.begun.lock().remove(what) else {
            return;
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        self.line(&format!("  {what}: {:.1} s", since.elapsed().as_secs_f64()));
    }

    /// A bar that counts to `total`. Shown on terminals only.
    pub fn bar(&self, what: &str, total: u64) -> ProgressBar {
        let Out::Bars(all) = &self.inner.out else {
            return ProgressBar::hidden();
        };
        let bar = all.add(ProgressBar::new(total).with_message(what.to_owned()));
        if let Ok(style) = ProgressStyle::with_template("  {msg} [{bar:40}] {pos}/{len} {elapsed}")
        {
            bar.set_style(style);
        }
        bar
    }

    /// A line of its own, above the spinners.
    pub fn line(&self, text: &str) {
        match &self.inner.out {
            Out::Bars(all) => {
                let _ = all.println(text);
            }
            Out::Lines => eprintln!("{text}"),
            Out::Silent => {}
        }
    }

    /// Whether it is drawn over and over (a terminal), so that short-lived text is welcome.
    pub fn is_live(&self) -> bool {
        matches!(self.inner.out, Out::Bars(_))
    }
}
