//! Encrypts the tasks' specs, which hold the targets' tokens, with a key that is not in the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::secret::Secret;
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::owner::{Claim, Taken, Term};
use super::{
    Backend, Event, Logged, SharedTaskStore, StoredTask, TaskStore, TaskWrite, Unreadable,
};

/// What a sealed spec begins with; then base64 of nonce and AES-256-GCM text. A spec that is not sealed begins with
/// `{`.
const MARK: &str = "sealed:1:";
pub const SETTING: &str = "metaStoreConfig.secretKey";

/// The key. Has no `Debug`.
#[derive(Clone)]
pub struct SealKey(Arc<LessSafeKey>);

#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SealError {
    #[error(
        "{SETTING}: 32 bytes in base64 or as 64 hexadecimal digits expected; openssl rand -base64 32 makes one"
    )]
    Form,
    #[error(
        "the store's task {0} is encrypted with another key than {SETTING}; set it to the key the store was written with"
    )]
    WrongKey(String),
    #[error(
        "the store's task {0} is encrypted; set {SETTING} to the key the store was written with"
    )]
    NoKey(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SealKey {
    /// # Errors
    /// It is not 32 bytes in one of the two forms.
    pub fn parse(text: &Secret) -> Result<Self, SealError> {
        let text = text.expose().trim();
        let bytes = match text.len() {
            64 => hex(text),
            _ => STANDARD.decode(text).ok(),
        };
        bytes
            .and_then(|bytes| UnboundKey::new(&AES_256_GCM, &bytes).ok())
            .map(|key| Self(Arc::new(LessSafeKey::new(key))))
            .ok_or(SealError::Form)
    }

    /// `task` is sealed in: a spec cannot be put into another task's place.
    fn seal(&self, task: &TaskId, spec: &str) -> Result<String, StoreError> {
        let broken = |_| StoreError::Unavailable("no random numbers or no encryption".to_owned());
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(broken)?;
        let mut text = spec.as_bytes().to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(task.as_str().as_bytes()),
                &mut text,
            )
            .map_err(broken)?;
        let mut whole = nonce.to_vec();
        whole.append(&mut text);
        Ok(format!("{MARK}{}", STANDARD.encode(whole)))
    }

    fn open(&self, task: &TaskId, sealed: &str) -> Option<String> {
        let mut whole = STANDARD.decode(sealed.strip_prefix(MARK)?).ok()?;
        let (nonce, text) = whole.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = Aad::from(task.as_str().as_bytes());
        let spec = self.0.open_in_place(nonce, aad, text).ok()?;
        String::from_utf8(spec.to_vec()).ok()
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

fn is_sealed(spec: &str) -> bool {
    spec.starts_with(MARK)
}

/// A store whose specs are sealed if there is a key.
pub struct Sealed {
    inner: Arc<dyn Backend>,
    key: Option<SealKey>,
}

impl Sealed {
    /// Tries the key on what is stored.
    ///
    /// # Errors
    /// The store was written with another key, or with one and there is none.
    pub async fn open(inner: Arc<dyn Backend>, key: Option<SealKey>) -> Result<Self, SealError> {
        for task in inner.tasks().await?.into_iter().flatten() {
            if !is_sealed(&task.spec) {
                continue;
            }
            match &key {
                None => return Err(SealError::NoKey(task.id.to_string())),
                Some(key) if key.open(&task.id, &task.spec).is_none() => {
                    return Err(SealError::WrongKey(task.id.to_string()));
                }
                Some(_) => {}
            }
        }
        Ok(Self { inner, key })
    }

    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Seals what was stored before there was a key; says how many tasks that were.
    pub async fn seal_what_is_plain(&self, term: &Term) -> Result<usize, StoreError> {
        let Some(key) = &self.key else {
            return Ok(0);
        };
        let mut writes = Vec::new();
        for task in self.inner.tasks().await?.into_iter().flatten() {
            if !is_sealed(&task.spec) {
                writes.push(TaskWrite::SetSpec {
                    spec: key.seal(&task.id, &task.spec)?,
                    task: task.id,
                });
            }
        }
        let sealed = writes.len();
        self.inner.of_term(term).write_tasks(writes).await?;
        Ok(sealed)
    }
}

/// The same for the handle of a term.
struct SealedTerm {
    inner: SharedTaskStore,
    key: Option<SealKey>,
}

fn sealed(key: Option<&SealKey>, writes: Vec<TaskWrite>) -> Result<Vec<TaskWrite>, StoreError> {
    let Some(key) = key else {
        return Ok(writes);
    };
    writes
        .into_iter()
        .map(|write| match write {
            TaskWrite::Create(task) => Ok(TaskWrite::Create(StoredTask {
                spec: key.seal(&task.id, &task.spec)?,
                ..task
            })),
            TaskWrite::SetSpec { task, spec } => Ok(TaskWrite::SetSpec {
                spec: key.seal(&task, &spec)?,
                task,
            }),
            other => Ok(other),
        })
        .collect()
}

type Tasks = Vec<Result<StoredTask, Unreadable>>;

fn opened(key: Option<&SealKey>, tasks: Tasks) -> Tasks {
    let open = |task: StoredTask| {
        if !is_sealed(&task.spec) {
            return Ok(task);
        }
        match key.and_then(|key| key.open(&task.id, &task.spec)) {
            Some(spec) => Ok(StoredTask { spec, ..task }),
            None => Err(Unreadable {
                id: task.id,
                cause: format!("it is encrypted with another key than {SETTING}"),
            }),
        }
    };
    tasks.into_iter().map(|task| task.and_then(open)).collect()
}

/// A store that passes everything on but the specs.
macro_rules! pass_on {
    ($store:ty) => {
        #[async_trait]
        impl ProgressStore for $store {
            async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
                self.inner.load(task).await
            }

            async fn floors(
                &self,
                target: &TargetKey,
            ) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
                self.inner.floors(target).await
            }

            async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
                self.inner.message(task, message).await
            }

            async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
                self.inner.commit(changes).await
            }
        }

        #[async_trait]
        impl TaskStore for $store {
            async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
                self.inner
                    .write_tasks(sealed(self.key.as_ref(), writes)?)
                    .await
            }

            async fn tasks(&self) -> Result<Tasks, StoreError> {
                Ok(opened(self.key.as_ref(), self.inner.tasks().await?))
            }

            async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError> {
                self.inner.events(task, limit).await
            }

            async fn history(
                &self,
                of: Option<&TaskId>,
                after: u64,
                limit: u32,
            ) -> Result<Vec<Logged>, StoreError> {
                self.inner.history(of, after, limit).await
            }

            async fn close(&self, deadline: Duration) {
                self.inner.close(deadline).await;
            }
        }
    };
}

pass_on!(Sealed);
pass_on!(SealedTerm);

#[async_trait]
impl Backend for Sealed {
    async fn take(&self, claim: &Claim) -> Result<Taken, StoreError> {
        self.inner.take(claim).await
    }

    async fn renew(&self, term: &Term) -> Result<bool, StoreError> {
        self.inner.renew(term).await
    }

    async fn release(&self, term: &Term) -> Result<(), StoreError> {
        self.inner.release(term).await
    }

    fn of_term(&self, term: &Term) -> SharedTaskStore {
        Arc::new(SealedTerm {
            inner: self.inner.of_term(term),
            key: self.key.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealKey {
        SealKey::parse(&Secret::new(STANDARD.encode([byte; 32])))
            .ok()
            .unwrap()
    }

    #[test]
    fn a_sealed_spec_is_opened_by_its_key_for_its_task_alone() {
        let (a, b) = (TaskId::new("a"), TaskId::new("b"));
        let sealed = key(1).seal(&a, "{token}").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("token"));
        assert_ne!(sealed, key(1).seal(&a, "{token}").unwrap());
        assert_eq!(key(1).open(&a, &sealed).as_deref(), Some("{token}"));
        assert_eq!(key(1).open(&b, &sealed), None);
        assert_eq!(key(2).open(&a, &sealed), None);
        assert_eq!(key(1).open(&a, "sealed:1:AAAA"), None);
    }

    #[test]
    fn a_key_is_32_bytes_in_one_of_two_forms() {
        let parse = |text: &str| SealKey::parse(&Secret::new(text)).map(drop);
        assert_eq!(parse(&"ab".repeat(32)), Ok(()));
        assert_eq!(parse(&STANDARD.encode([7; 32])), Ok(()));
        for wrong in ["", "short", &"zz".repeat(32), &STANDARD.encode([7; 16])] {
            assert_eq!(parse(wrong), Err(SealError::Form));
        }
    }
}
