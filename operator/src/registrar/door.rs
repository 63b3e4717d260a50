//! How many connections there may be, and how many from one address: nobody takes all of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::{Bucket, Rate};

/// An address that has not come for this long is forgotten.
const REMEMBERED: Duration = Duration::from_mins(5);

/// Bounds on who may come in. What goes beyond is hung up on before it costs anything; a gate tries again in a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one address at once.
    pub per_address: usize,
    /// Those of them that have not come through the TLS handshake.
    pub handshakes_per_address: usize,
    /// New connections of one address.
    pub arrivals: Rate,
    /// Tokens from one address that the API server refuses. After that none of its tokens is shown to it for a while.
    pub refusals: Rate,
}

/// Counts who is in.
#[derive(Debug)]
pub(super) struct Door {
    bounds: Bounds,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    connections: usize,
    addresses: HashMap<IpAddr, Visitor>,
}

#[derive(Debug)]
struct Visitor {
    open: usize,
    in_handshake: usize,
    arrivals: Bucket,
    refusals: Bucket,
}

/// A connection that was let in; it counts until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    door: Arc<Door>,
    address: IpAddr,
    in_handshake: bool,
}

impl Door {
    /// A door with these bounds.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            inside: Mutex::default(),
        }
    }

    /// Lets a new connection in, if there may be another.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let bounds = &self.bounds;
        let address = address.to_canonical();
        let mut inside = self.lock();
        if inside.connections >= bounds.connections {
            return None;
        }
        let visitor = inside.addresses.entry(address).or_insert_with(|| Visitor {
            open: 0,
            in_handshake: 0,
            arrivals: Bucket::new(bounds.arrivals),
            refusals: Bucket::new(bounds.refusals),
        });
        if visitor.open >= bounds.per_address
            || visitor.in_handshake >= bounds.handshakes_per_address
            || visitor.arrivals.take(bounds.arrivals).is_err()
        {
            return None;
        }
        visitor.open += 1;
        visitor.in_handshake += 1;
        inside.connections += 1;
        Some(Guest {
            door: Arc::clone(self),
            address,
            in_handshake: true,
        })
    }

    /// Forgets who has not come for long.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        self.lock().addresses.retain(|_, visitor| {
            visitor.open > 0 || now - visitor.arrivals.at().max(visitor.refusals.at()) < REMEMBERED
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// The TLS handshake is done.
    pub(super) fn is_through(&mut self) {
        self.of_address(|visitor, _| visitor.in_handshake -= 1);
        self.in_handshake = false;
    }

    /// Whether another of the address' tokens may be shown to the API server. `Err` says when.
    pub(super) fn may_show_a_token(&self) -> Result<(), Duration> {
        let shown = self.of_address(|visitor, bounds| visitor.refusals.has_one(bounds.refusals));
        shown.unwrap_or(Ok(()))
    }

    /// The API server has refused a token of this address.
    pub(super) fn was_refused(&self) {
        self.of_address(|visitor, bounds| visitor.refusals.take(bounds.refusals));
    }

    fn of_address<T>(&self, work: impl FnOnce(&mut Visitor, &Bounds) -> T) -> Option<T> {
        let mut inside = self.door.lock();
        let visitor = inside.addresses.get_mut(&self.address)?;
        Some(work(visitor, &self.door.bounds))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.in_handshake {
            self.is_through();
        }
        self.of_address(|visitor, _| visitor.open -= 1);
        self.door.lock().connections -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        let rate = |burst| Rate {
            burst,
            per_minute: 60,
        };
        Bounds {
            connections: 6,
            per_address: 4,
            handshakes_per_address: 2,
            arrivals: rate(6),
            refusals: rate(2),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_address_takes_more_than_its_share() {
        let door = Arc::new(Door::new(bounds()));
        let one = IpAddr::from([10, 0, 0, 1]);
        // Given as many handshakes of one address as there may be, then there is no further one, by whatever name
        let mut guests = vec![door.enter(one).unwrap(), door.enter(one).unwrap()];
        assert!(door.enter(one).is_none());
        assert!(door.enter("::ffff:10.0.0.1".parse().unwrap()).is_none());
        // When they are through, then more come, up to the address' share
        for guest in &mut guests {
            guest.is_through();
        }
        guests.extend([door.enter(one).unwrap(), door.enter(one).unwrap()]);
        guests.iter_mut().skip(2).for_each(Guest::is_through);
        assert!(door.enter(one).is_none());
        // And another address has its own, up to all that there may be
        let other = IpAddr::from([10, 0, 0, 2]);
        let others = [door.enter(other).unwrap(), door.enter(other).unwrap()];
        assert!(door.enter(IpAddr::from([10, 0, 0, 3])).is_none());
        // When all have gone, then nothing of them is left, and they may come as often as the rate says
        drop((guests, others));
        assert_eq!(door.lock().connections, 0);
        assert!((0..2).all(|_| door.enter(one).is_some()));
        assert!(door.enter(one).is_none(), "it comes too often");
        tokio::time::advance(REMEMBERED).await;
        door.tidy();
        assert!(door.lock().addresses.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_whose_tokens_are_refused_waits() {
        let door = Arc::new(Door::new(bounds()));
        let guest = door.enter(IpAddr::from([10, 0, 0, 1])).unwrap();
        let other = door.enter(IpAddr::from([10, 0, 0, 2])).unwrap();
        guest.may_show_a_token().unwrap();
        guest.was_refused();
        guest.was_refused();
        let wait = guest.may_show_a_token().unwrap_err();
        other.may_show_a_token().unwrap();
        tokio::time::advance(wait).await;
        guest.may_show_a_token().unwrap();
    }
}
