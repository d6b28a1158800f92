//! Guessing is slow: how many of one peer's logins may be under way or be waiting for their refusal.
//!
//! A refused login waits a second before it is answered. While [`PEER_PLACES`] of an address are being verified or wait,
//! its further ones are turned away unread; [`PLACES`] bounds all addresses together, and with it the memory. What was
//! verified a moment ago takes no place, so guessers behind a proxy do not lock its users out who are logged in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a refusal waits.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Places of one address, an IPv6 network of 64 bits being one.
pub(super) const PEER_PLACES: usize = 32;
/// Places of all addresses.
const PLACES: usize = 1024;

/// The logins that are being verified and the refusals that wait.
#[derive(Default)]
pub(super) struct Throttle {
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// A place, until it is dropped.
pub(super) struct Place {
    taken: Arc<Mutex<Taken>>,
    peer: IpAddr,
}

impl Throttle {
    /// A place for a login of `peer`; `None` if too many are taken.
    pub(super) fn enter(&self, peer: SocketAddr) -> Option<Place> {
        let peer = network(peer.ip());
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= PLACES {
            return None;
        }
        let of_peer = taken.by_peer.entry(peer).or_default();
        if *of_peer >= PEER_PLACES {
            return None;
        }
        *of_peer += 1;
        taken.all += 1;
        Some(Place { taken: Arc::clone(&self.taken), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(of_peer) = taken.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

/// What one guesser has many of counts as one: the lower half of an IPv6 address is the host's own choice.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().expect("an address"), 1)
    }

    #[test]
    fn a_peer_has_so_many_places_and_all_together_so_many() {
        let throttle = Throttle::default();
        let places: Vec<_> = (0..PEER_PLACES).map_while(|_| throttle.enter(peer("192.0.2.1"))).collect();
        assert_eq!(places.len(), PEER_PLACES);
        assert!(throttle.enter(peer("192.0.2.1")).is_none());
        assert!(
            throttle.enter(peer("::ffff:192.0.2.1")).is_none(),
            "the same, as a dual-stack socket says it"
        );
        assert!(throttle.enter(peer("192.0.2.2")).is_some());
        drop(places);
        assert!(throttle.enter(peer("192.0.2.1")).is_some());

        let networks = (0..=PLACES).map_while(|at| throttle.enter(peer(&format!("2001:db8:0:{at:x}::1"))));
        assert_eq!(networks.collect::<Vec<_>>().len(), PLACES);
        let hosts = (0..=PEER_PLACES).map_while(|at| throttle.enter(peer(&format!("2001:db8::{at:x}"))));
        assert_eq!(hosts.collect::<Vec<_>>().len(), PEER_PLACES, "hosts of one network are one peer");
        assert!(throttle.taken.lock().expect("not poisoned").by_peer.is_empty(), "nothing is kept");
    }
}
