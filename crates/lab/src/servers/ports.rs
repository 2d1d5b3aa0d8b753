//! Free TCP ports.

use std::collections::HashSet;
use std::net::TcpListener;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use rand::Rng;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port nobody listens on and that this process has not been given before.
///
/// Below the range from which the operating system takes the local ports of outgoing connections (32768 on Linux):
/// such a port could be taken between this call and the server's start.
///
/// # Errors
/// None found.
pub fn free_port() -> Result<u16> {
    let mut guard = GIVEN.lock();
    let given = guard.get_or_insert_with(HashSet::new);
    for _ in 0..2000 {
        let port = rand::rng().random_range(10_000..32_000);
        if !given.contains(&port) && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free TCP port between 10000 and 32000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_never_given_twice() {
        let ports: HashSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        // Each was free when it was given; by now somebody else on this machine may have taken it.
        assert!(ports.iter().all(|port| (10_000..32_000).contains(port)));
    }
}
