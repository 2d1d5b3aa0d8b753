//! Hears from the kernel (inotify) that something was written into a folder.

use std::io;
use std::path::Path;

use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchMask};

/// Many events: what is written while somebody reads is heard as one.
const BUFFER: usize = 4096;

pub(super) struct Watch(EventStream<[u8; BUFFER]>);

impl Watch {
    /// # Errors
    /// The folder is not there, or the user has as many watches as the system allows.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let writes = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::DELETE_SELF;
        inotify.watches().add(folder, writes)?;
        Ok(Self(inotify.into_event_stream([0; BUFFER])?))
    }

    /// Waits until something has been written since the last call (or since it was opened). Cancel safe.
    ///
    /// # Errors
    /// It will not be heard of any more: the folder is gone.
    pub(super) async fn written(&mut self) -> io::Result<()> {
        let mut next = self.0.next().await;
        loop {
            let event = next.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event
                .mask
                .intersects(EventMask::IGNORED | EventMask::DELETE_SELF)
            {
                return Err(io::ErrorKind::NotFound.into());
            }
            // All that is there already stands for the same news.
            match self.0.next().now_or_never() {
                Some(event) => next = event,
                None => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_write_is_heard_once_and_the_end_of_the_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("000001.log");
        std::fs::write(&file, "").unwrap();
        let mut watch = Watch::open(folder.path()).unwrap();
        let nothing = timeout(Duration::from_millis(20), watch.written()).await;
        assert!(nothing.is_err());

        std::fs::write(&file, "a message").unwrap();
        timeout(SOON, watch.written()).await.unwrap().unwrap();
        let nothing = timeout(Duration::from_millis(20), watch.written()).await;
        assert!(nothing.is_err());

        drop(folder);
        while timeout(SOON, watch.written()).await.unwrap().is_ok() {}
    }
}
