//! Messages that wait for the end of their stretch, in the order in which they were read, and how many bytes they have.

use super::stretch::Planned;

#[derive(Default)]
pub(super) struct Kept {
    all: Vec<Planned>,
    /// Asked for with each message that is read.
    bytes: usize,
}

impl Kept {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn all(&self) -> &[Planned] {
        &self.all
    }

    pub(super) fn all_mut(&mut self) -> &mut [Planned] {
        &mut self.all
    }

    pub(super) fn push(&mut self, planned: Planned) {
        self.bytes += planned.bytes;
        self.all.push(planned);
    }

    /// Takes out those of which `is` is true.
    pub(super) fn take(&mut self, is: impl FnMut(&Planned) -> bool) -> Vec<Planned> {
        let (taken, left) = std::mem::take(&mut self.all).into_iter().partition(is);
        self.all = left;
        self.count();
        taken
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&mut Planned) -> bool) {
        self.all.retain_mut(keep);
        self.count();
    }

    fn count(&mut self) {
        self.bytes = self.all.iter().map(|p| p.bytes).sum();
    }
}
