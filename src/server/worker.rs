//! What a worker thread does with the connections it is given, and how they come to an end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;

use super::connection::Shop;
use super::control::Control;
use super::encore::Repertoires;
use super::{Counters, ServerOptions, Service};
use crate::sys::Files;

/// How far the server's end has come. It only moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted and served.
    #[default]
    Serve,
    /// No connection is accepted; idle ones are closed, the others after the response under way.
    Drain,
    /// What is left is cut.
    Cut,
}

/// An accepted connection on its way to a worker.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    /// The number of the listener that it came through.
    pub(super) listener: usize,
    /// One of `connections_max`; given back when the connection ends.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Every worker's door, as the listeners see it: connections go to the worker that has the fewest.
#[derive(Debug)]
pub struct Doors(Vec<Door>);

#[derive(Debug)]
struct Door {
    // Unbounded, but every connection in it holds a permit of `connections_max`.
    arrivals: mpsc::UnboundedSender<Arrival>,
    open: Arc<AtomicUsize>,
}

/// One worker's end of its door.
#[derive(Debug)]
pub struct Seat {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    open: Arc<AtomicUsize>,
}

/// Makes doors for `workers` workers, and a seat for each of them.
pub fn doors(workers: usize) -> (Doors, Vec<Seat>) {
    let (doors, seats) = (0..workers.max(1))
        .map(|_| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let open = Arc::new(AtomicUsize::new(0));
            (Door { arrivals: sender, open: Arc::clone(&open) }, Seat { arrivals: receiver, open })
        })
        .unzip();
    (Doors(doors), seats)
}

impl Doors {
    /// How many connections are open, those on their way to a worker included.
    pub fn open_connections(&self) -> usize {
        self.0.iter().map(|door| door.open.load(Ordering::Relaxed)).sum()
    }

    /// Gives the connection to the worker that has the fewest. Drops it if no worker is left.
    pub(super) fn admit(&self, arrival: Arrival) {
        // Between looking and counting another listener may do the same; then two connections go to one worker.
        let doors = self.0.iter().filter(|door| !door.arrivals.is_closed());
        if let Some(door) = doors.min_by_key(|door| door.open.load(Ordering::Relaxed)) {
            door.open.fetch_add(1, Ordering::Relaxed);
            if door.arrivals.send(arrival).is_err() {
                door.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Counts a connection down when it ends, however it does.
struct Opened(Arc<AtomicUsize>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What serves the connections of one thread.
pub struct Worker<S> {
    /// Answers the requests.
    pub service: Rc<S>,
    /// The same for all workers.
    pub options: Arc<ServerOptions>,
    /// The thread's way to files.
    pub files: Files,
    /// The same for all workers.
    pub counters: Arc<Counters>,
}

impl<S: Service> Worker<S> {
    /// Serves the connections that come through `seat`. Runs inside a [`LocalSet`](tokio::task::LocalSet) of a
    /// current-thread runtime, whose thread it shares with whatever the service does.
    ///
    /// On [`Phase::Drain`] idle connections are closed, the others end with the response under way, which says
    /// `Connection: close` if its head is not sent yet. After [`ServerOptions::drain_timeout`], or on [`Phase::Cut`], or
    /// when the sender of `phase` is gone, what is left is cut: a response under way ends in a reset. Returns when no
    /// connection is left; [`Files::drain`] is the caller's to call. Dropping the future cuts all connections.
    pub async fn run(self, mut seat: Seat, mut phase: watch::Receiver<Phase>) {
        let drain_timeout = self.options.drain_timeout;
        let shop = Rc::new(Shop {
            service: self.service,
            options: self.options,
            files: self.files,
            counters: self.counters,
            repertoires: Repertoires::default(),
        });
        let mut connections = Connections::default();
        loop {
            tokio::select! {
                arrival = seat.arrivals.recv() => match arrival {
                    Some(arrival) => connections.serve(&shop, arrival, Opened(Arc::clone(&seat.open))),
                    // The listeners are gone. What is open is served until the phase says otherwise.
                    None => break,
                },
                () = connections.one_ended() => {}
                _ = phase.wait_for(|phase| *phase > Phase::Serve) => break,
            }
        }
        let draining = async {
            // An error means that nobody is left to say so: the same as a drain.
            drop(phase.wait_for(|phase| *phase > Phase::Serve).await);
        };
        tokio::select! {
            () = draining => {}
            () = connections.all_ended() => {}
        }
        // What was accepted and not begun has said nothing yet that would have been read.
        seat.arrivals.close();
        while let Ok(arrival) = seat.arrivals.try_recv() {
            drop((arrival, Opened(Arc::clone(&seat.open))));
        }
        connections.drain();
        let cut = async {
            let cut = phase.wait_for(|phase| *phase == Phase::Cut);
            if tokio::time::timeout(drain_timeout, cut).await.is_err() {
                tracing::warn!(
                    seconds = drain_timeout.as_secs(),
                    "connections outlived the drain and are cut"
                );
            }
        };
        tokio::select! {
            () = connections.all_ended() => {}
            () = cut => connections.cut().await,
        }
    }
}

/// The open connections of a worker.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    controls: Vec<std::rc::Weak<Control>>,
}

impl Connections {
    fn serve<S: Service>(&mut self, shop: &Rc<Shop<S>>, arrival: Arrival, opened: Opened) {
        let Arrival { stream, peer, listener, permit } = arrival;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%peer, %error, "a connection could not be registered");
                return;
            }
        };
        let control = Rc::new(Control::default());
        self.remember(&control);
        let shop = Rc::clone(shop);
        self.tasks.spawn_local(async move {
            let _held = (permit, opened);
            shop.serve(stream, peer, listener, control).await;
        });
    }

    /// Keeps the list of controls at most about twice as long as there are connections.
    fn remember(&mut self, control: &Rc<Control>) {
        if self.controls.len() == self.controls.capacity() {
            self.controls.retain(|control| control.strong_count() > 0);
            self.controls.reserve(self.controls.len().max(16));
        }
        self.controls.push(Rc::downgrade(control));
    }

    /// Ready when a connection ended; never if there is none.
    async fn one_ended(&mut self) {
        match self.tasks.join_next().await {
            Some(result) => report(result),
            None => std::future::pending().await,
        }
    }

    async fn all_ended(&mut self) {
        while let Some(result) = self.tasks.join_next().await {
            report(result);
        }
    }

    fn drain(&self) {
        for control in self.controls.iter().filter_map(std::rc::Weak::upgrade) {
            control.drain();
        }
    }

    async fn cut(&mut self) {
        self.tasks.shutdown().await;
    }
}

/// A connection that panicked took only itself down, but nobody else would tell.
fn report(result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result
        && error.is_panic()
    {
        tracing::error!(%error, "a connection panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn a_connection_goes_to_the_worker_that_has_the_fewest_and_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slots = Arc::new(Semaphore::new(100));
        let admit = |doors: &Doors| {
            let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let peer = stream.local_addr().unwrap();
            let permit = Arc::clone(&slots).try_acquire_owned().unwrap();
            doors.admit(Arrival { stream, peer, listener: 0, permit });
        };
        let (doors, mut seats) = doors(3);
        for _ in 0..9 {
            admit(&doors);
        }
        let waiting =
            |seats: &[Seat]| -> Vec<usize> { seats.iter().map(|seat| seat.arrivals.len()).collect() };
        assert_eq!(waiting(&seats), [3, 3, 3]);
        // One connection ends at the second worker, and the third worker goes away with its own.
        drop((seats[1].arrivals.try_recv(), Opened(Arc::clone(&seats[1].open))));
        drop(seats.pop());
        admit(&doors);
        assert_eq!(waiting(&seats), [3, 3]);
        admit(&doors);
        admit(&doors);
        assert_eq!(waiting(&seats), [4, 4]);
        drop(seats);
        admit(&doors);
        assert_eq!(slots.available_permits(), 100, "nobody is left to serve it");
    }
}
