//! How a run is told to end: after the blobs in flight, or at once.

use tokio::sync::watch;

/// A wish to end, shared by whoever has it and the run. Clones are the same wish. It can only become more urgent.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<Urgency>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    None,
    AfterBlobs,
    AtOnce,
}

impl Default for Stop {
    fn default() -> Self {
        Self(watch::Sender::new(Urgency::None))
    }
}

impl Stop {
    /// Nobody wishes to end yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing new is begun; blobs and manifests on their way arrive. An image whose last blob arrives so is finished.
    pub fn after_blobs(&self) {
        self.raise(Urgency::AfterBlobs);
    }

    /// Everything is dropped where it stands. Nothing that is at the target is harmed by that.
    pub fn at_once(&self) {
        self.raise(Urgency::AtOnce);
    }

    /// Whether somebody wishes to end, however urgently.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() > Urgency::None
    }

    /// Returns once somebody wishes to end, however urgently. Cancel-safe.
    pub async fn requested(&self) {
        self.at_least(Urgency::AfterBlobs).await;
    }

    /// Returns once somebody wishes to end at once. Cancel-safe.
    pub async fn requested_at_once(&self) {
        self.at_least(Urgency::AtOnce).await;
    }

    fn raise(&self, urgency: Urgency) {
        self.0.send_if_modified(|known| {
            let more = urgency > *known;
            *known = urgency.max(*known);
            more
        });
    }

    async fn at_least(&self, urgency: Urgency) {
        // We hold a sender ourselves, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(|known| *known >= urgency).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wish_only_becomes_more_urgent() {
        let stop = Stop::new();
        let other = stop.clone();
        assert!(!stop.is_requested());
        other.at_once();
        other.after_blobs();
        assert!(stop.is_requested());
        stop.requested().await;
        stop.requested_at_once().await;
    }
}
