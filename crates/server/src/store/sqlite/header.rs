//! Whose a file is, from its first bytes alone.
//!
//! No connection is made for that: even a reading one makes files beside a database in WAL mode, and a file that is not
//! ours stays exactly as it is. Our own mark is in the main file from the first moment on, because the file is set up
//! before it is switched to WAL.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::schema::{APPLICATION, OpenError, VERSION, beside};

/// The header of a SQLite file and the beginning of its first page, which is the root of its table of tables.
const HEAD: usize = 108;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Type of a page that holds the rows themselves.
const LEAF: u8 = 0x0d;

/// # Errors
/// The file is of something else, of a newer version, or cannot be read. None if it is not there, empty or ours.
pub(crate) fn check(path: &Path) -> Result<(), OpenError> {
    let io = |cause| OpenError::Io {
        path: path.to_owned(),
        cause,
    };
    let not_ours = |what: String| OpenError::NotOurs {
        path: path.to_owned(),
        what,
    };
    let mut head = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(io)
            .map(drop)?,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(io(cause)),
    }
    if head.is_empty() {
        return Ok(());
    }
    let Some(header) = Header::parse(&head) else {
        return Err(not_ours("not a SQLite file".to_owned()));
    };
    if header.application == APPLICATION {
        return match header.version > VERSION {
            true => Err(OpenError::Newer {
                path: path.to_owned(),
                found: header.version,
            }),
            false => Ok(()),
        };
    }
    let wal = std::fs::metadata(beside(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
    if header.is_blank() && !wal {
        return Ok(());
    }
    Err(not_ours(format!(
        "a SQLite file of something else: application id {}",
        header.application
    )))
}

struct Header {
    application: i64,
    version: i64,
    has_tables: bool,
}

impl Header {
    /// `https://www.sqlite.org/fileformat2.html`, 1.3 and 1.6
    fn parse(head: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes: [u8; 4] = head.get(at..at + 4)?.try_into().ok()?;
            Some(i64::from(u32::from_be_bytes(bytes)))
        };
        if head.get(..16)? != MAGIC {
            return None;
        }
        let page = head.get(100..HEAD)?;
        let rows = [*page.get(3)?, *page.get(4)?];
        Some(Self {
            version: number(60)?,
            application: number(68)?,
            has_tables: *page.first()? != LEAF || rows != [0, 0],
        })
    }

    fn is_blank(&self) -> bool {
        self.application == 0 && self.version == 0 && !self.has_tables
    }
}
