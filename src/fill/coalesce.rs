//! One question upstream for all who ask it at the same time.
//!
//! The question runs as a task of its own on the worker that asked first, so a client that leaves does not take the
//! answer from the others. Everyone gets the same answer; nothing is kept once it is there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Questions under way.
#[derive(Debug)]
pub struct Coalesce<K, V> {
    asked: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K, V> Default for Coalesce<K, V> {
    fn default() -> Self {
        Self { asked: Arc::default() }
    }
}

impl<K: Clone + Eq + Hash + 'static, V: Clone + 'static> Coalesce<K, V> {
    /// The answer to `key`: that of the question under way, or of `ask`, which is then begun. `None` if its task died.
    /// The flag says whether another request's question was joined.
    ///
    /// Must be called inside a `LocalSet`. Cancel safe: the question goes on.
    pub async fn answer<F>(&self, key: K, ask: impl FnOnce() -> F) -> (Option<V>, bool)
    where
        F: Future<Output = V> + 'static,
    {
        let (mut receiver, joined) = match self.lock().entry(key.clone()) {
            Entry::Occupied(occupied) => (occupied.get().clone(), true),
            Entry::Vacant(vacant) => {
                let (sender, receiver) = watch::channel(None);
                vacant.insert(receiver.clone());
                let removal = Removal { asked: Arc::clone(&self.asked), key };
                let question = ask();
                tokio::task::spawn_local(async move {
                    let answer = question.await;
                    // Out of the map before the answer is known, so that nobody finds an old answer there.
                    drop(removal);
                    sender.send_replace(Some(answer));
                });
                (receiver, false)
            }
        };
        let answer = receiver.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        (answer, joined)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, watch::Receiver<Option<V>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question out of the map, also when its task is cancelled.
struct Removal<K: Eq + Hash, V> {
    asked: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Removal<K, V> {
    fn drop(&mut self) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::sync::oneshot;
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn many_who_ask_cause_one_question_and_its_asker_may_leave() {
        LocalSet::new()
            .run_until(async {
                let questions = Rc::new(Coalesce::<u8, u8>::default());
                let asked = Rc::new(Cell::new(0));
                let (release, released) = oneshot::channel::<()>();
                let first = tokio::task::spawn_local({
                    let (questions, asked) = (Rc::clone(&questions), Rc::clone(&asked));
                    async move {
                        let ask = || {
                            asked.set(asked.get() + 1);
                            async move {
                                let _ = released.await;
                                7
                            }
                        };
                        questions.answer(1, ask).await
                    }
                });
                tokio::task::yield_now().await;
                first.abort();
                let others: Vec<_> = (0..8)
                    .map(|_| {
                        let questions = Rc::clone(&questions);
                        tokio::task::spawn_local(async move { questions.answer(1, || async { 0 }).await })
                    })
                    .collect();
                tokio::task::yield_now().await;
                release.send(()).expect("the question outlives its asker");
                for other in others {
                    assert_eq!(other.await.expect("no panic"), (Some(7), true));
                }
                assert_eq!(asked.get(), 1);
                assert_eq!(questions.answer(1, || async { 9 }).await, (Some(9), false), "nothing is kept");
            })
            .await;
    }
}
