//! One question at a time, however many ask it.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{sync::Mutex, time::Instant};

use super::Error;

/// An answer that is shared, and renewed by one of those who need it while the others wait.
///
/// Whoever asks while a question is under way shares its answer, good or bad.
pub(super) struct Single<T> {
    /// How many questions have ended: whoever sees it grow while waiting was there while one was under way.
    ended: AtomicU64,
    slot: Mutex<Slot<T>>,
}

struct Slot<T> {
    answer: Option<Answer<T>>,
    failure: Option<Error>,
}

/// An answer, and when its question was put.
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) at: Instant,
}

impl<T> Default for Single<T> {
    fn default() -> Self {
        Self {
            ended: AtomicU64::new(0),
            slot: Mutex::new(Slot {
                answer: None,
                failure: None,
            }),
        }
    }
}

impl<T: Clone> Single<T> {
    /// The answer at hand where `good_enough`, else a new one from `ask`, which is given the last one.
    pub(super) async fn get<F>(
        &self,
        good_enough: impl FnOnce(&Answer<T>) -> bool,
        ask: impl FnOnce(Option<T>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let before = self.ended.load(Ordering::Acquire);
        let mut slot = self.slot.lock().await;
        let shared = self.ended.load(Ordering::Acquire) > before;
        if let Some(failure) = slot.failure.as_ref().filter(|_| shared) {
            return Err(failure.clone());
        }
        if let Some(answer) = &slot.answer
            && (shared || good_enough(answer))
        {
            return Ok(answer.value.clone());
        }
        let at = Instant::now();
        let result = ask(slot.answer.as_ref().map(|answer| answer.value.clone())).await;
        match &result {
            Ok(value) => {
                slot.answer = Some(Answer {
                    value: value.clone(),
                    at,
                });
                slot.failure = None;
            }
            Err(error) => slot.failure = Some(error.clone()),
        }
        self.ended.fetch_add(1, Ordering::Release);
        result
    }

    /// Forgets the answer, where it is this one.
    pub(super) async fn forget(&self, is_it: impl FnOnce(&T) -> bool) {
        let mut slot = self.slot.lock().await;
        if slot
            .answer
            .as_ref()
            .is_some_and(|answer| is_it(&answer.value))
        {
            slot.answer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[tokio::test]
    async fn twenty_who_ask_at_once_share_one_answer() {
        let single = Single::default();
        let asked = AtomicU32::new(0);
        let ask = |_| async {
            tokio::task::yield_now().await;
            Ok(asked.fetch_add(1, Ordering::SeqCst))
        };
        let answers = futures::future::join_all((0..20).map(|_| single.get(|_| false, ask))).await;
        assert!(answers.into_iter().all(|answer| answer == Ok(0)));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn who_waited_shares_the_failure_and_who_comes_later_tries_again() {
        let single: Single<u32> = Single::default();
        let asked = AtomicU32::new(0);
        let fail = |_| async {
            tokio::task::yield_now().await;
            asked.fetch_add(1, Ordering::SeqCst);
            Err(Error::Busy {
                message: String::new(),
            })
        };
        let answers = futures::future::join_all((0..20).map(|_| single.get(|_| true, fail))).await;
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(single.get(|_| true, |_| async { Ok(7) }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_failure_keeps_the_last_answer_for_the_next_question() {
        let single = Single::default();
        single.get(|_| true, |_| async { Ok(1) }).await.unwrap();
        let failure = Error::Busy {
            message: String::new(),
        };
        single
            .get(|_| false, |_| async { Err(failure) })
            .await
            .unwrap_err();
        let next = single
            .get(|_| false, |last| async move { Ok(last.unwrap() + 1) })
            .await;
        assert_eq!(next, Ok(2));
    }
}
