//! Which task writes which collection of a target: never two of them one. No I/O.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::ids::{CollectionId, TaskId};
use crate::select::Name;

/// The collections of one target, by their names there, that tasks of this process write now.
#[derive(Debug, Default)]
pub struct Claims(Mutex<BTreeMap<Name, (TaskId, CollectionId)>>);

impl Claims {
    /// This task writes it from now on, for this collection of the source.
    ///
    /// # Errors
    /// Another one does.
    pub fn take(&self, name: &Name, task: &TaskId, of: CollectionId) -> Result<(), TaskId> {
        let mut claims = self.0.lock();
        match claims.get(name) {
            Some((other, _)) if other != task => Err(other.clone()),
            _ => {
                claims.insert(name.clone(), (task.clone(), of));
                Ok(())
            }
        }
    }

    pub fn leave(&self, task: &TaskId, of: CollectionId) {
        self.0.lock().retain(|_, (t, c)| t != task || *c != of);
    }

    /// It is written under another name.
    pub fn give_up(&self, name: &Name, task: &TaskId, of: CollectionId) {
        let mut claims = self.0.lock();
        if claims.get(name).is_some_and(|(t, c)| t == task && *c == of) {
            claims.remove(name);
        }
    }

    pub fn leave_all(&self, task: &TaskId) {
        self.0.lock().retain(|_, (t, _)| t != task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_written_by_one_task() {
        let claims = Claims::default();
        let (a, b) = (TaskId::new("a"), TaskId::new("b"));
        let (x, y) = (Name::new("db", "x"), Name::new("db", "y"));
        let (one, two) = (CollectionId(1), CollectionId(2));
        assert_eq!(claims.take(&x, &a, one), Ok(()));
        assert_eq!(claims.take(&x, &a, two), Ok(()));
        assert_eq!(claims.take(&x, &b, one), Err(a.clone()));
        assert_eq!(claims.take(&y, &b, one), Ok(()));
        // That of another collection of the same task stays.
        claims.leave(&a, one);
        assert_eq!(claims.take(&x, &b, one), Err(a.clone()));
        claims.leave(&a, two);
        assert_eq!(claims.take(&x, &b, one), Ok(()));
        claims.leave_all(&b);
        assert_eq!(claims.take(&y, &a, one), Ok(()));
    }
}
