//! Lists in pages, and answers that are kept because GitHub says for nothing that they still hold.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use hyper::body::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::Instant;

use super::{
    Client, Error,
    ask::{Answer, Ask, Tag},
    body::{PER_PAGE, Page},
    room::{Held, Place},
};

/// Answers that are kept for the sake of their tags: of each pool, those for a run that is watched, for runs whose jobs
/// have ended, for each branch that requires checks, and few more.
const MOST_KEPT: usize = 1024;
/// What was not read for so long is kept no more, such as an answer for a run that has ended: nearly all that is read again is
/// read each five minutes at least. A new one takes no place of one that is read: were there more of them than places, each
/// would be gone before its turn came.
const READ_WITHIN: Duration = Duration::from_mins(12);
/// More items than these pages hold no list has; it only stops a server that never comes to an end.
pub(super) const MOST_PAGES: usize = 30;
/// Of what it has searched for, such as runs of a status, GitHub gives no more. See
/// <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28#list-workflow-runs-for-a-repository>.
const MOST_FOUND: usize = 1000;
/// What the items of a list may take in memory, in bytes: three thousand jobs are some 2 MiB.
const MOST_OF_LIST: usize = 4 * 1024 * 1024;

/// An item of a list.
pub(super) trait Item: DeserializeOwned + Send {
    /// What it takes in memory, in bytes: as much as it holds, beside itself, at least.
    fn size(&self) -> usize;
}

/// The last answers, by path.
#[derive(Default)]
pub(super) struct Tagged(Mutex<HashMap<String, Kept>>);

struct Kept {
    tag: Tag,
    body: Bytes,
    /// When it was last asked for.
    asked: Instant,
    _place: Place,
}

impl Tagged {
    /// Drops those that are read no more.
    pub(super) fn tidy(&self) {
        drop(self.fresh());
    }

    /// Those that are read, without the others.
    fn fresh(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, last| last.asked.elapsed() < READ_WITHIN);
        kept
    }

    /// The last answer for this path, which is read again.
    fn last(&self, path: &str) -> Option<(Tag, Bytes)> {
        let mut kept = self.fresh();
        let last = kept.get_mut(path)?;
        last.asked = Instant::now();
        Some((last.tag.clone(), last.body.clone()))
    }
}

/// What is asked for, and what that takes.
pub(super) struct What<'a> {
    /// Words that fit after "may not".
    pub(super) action: &'a str,
    /// In GitHub's words.
    pub(super) permission: &'a str,
}

impl Client {
    /// All items of a list. Where it is not there, or not for the credentials to see, that is an
    /// [`Error::NotFound`]: an empty list is one that GitHub showed.
    pub(super) async fn list<T: Item>(&self, path: &str, what: &What<'_>) -> Result<Vec<T>, Error> {
        let (items, is_whole) = self.list_up_to(MOST_PAGES, path, what).await?;
        if is_whole {
            return Ok(items);
        }
        Err(Error::Malformed {
            action: what.action.to_owned(),
            message: format!(
                "it has more than {} items, or they are more than {} MiB",
                MOST_PAGES * PER_PAGE,
                MOST_OF_LIST / 1024 / 1024
            ),
        })
    }

    /// The first pages of a list, and whether that is all of it. `path` has no page in its query.
    pub(super) async fn list_up_to<T: Item>(
        &self,
        pages: usize,
        path: &str,
        what: &What<'_>,
    ) -> Result<(Vec<T>, bool), Error> {
        let (mut items, mut size) = (Vec::new(), 0);
        let take = |page: Vec<T>| {
            size += page.iter().map(Item::size).sum::<usize>();
            items.extend(page);
            size <= MOST_OF_LIST
        };
        let is_whole = self.each_page(pages, path, what, take).await?;
        Ok((items, is_whole))
    }

    /// Gives each of the first pages of a list to `take`, until that says that it has enough. Whether it has got all of it.
    pub(super) async fn each_page<T: DeserializeOwned>(
        &self,
        pages: usize,
        path: &str,
        what: &What<'_>,
        mut take: impl FnMut(Vec<T>) -> bool + Send,
    ) -> Result<bool, Error> {
        let mut taken = 0;
        for number in 1..=pages {
            let (page, answer) = self.page(path, number, what).await?;
            let count = page.items.len();
            taken += count;
            let goes_on = match page.total {
                Some(total) => taken < total,
                None => answer.has_next() || count == PER_PAGE,
            };
            if !take(page.items) {
                return Ok(false);
            }
            if count == 0 || !goes_on {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first and the last page of a list that GitHub has searched for.
    pub(super) async fn list_ends<T: Item>(
        &self,
        path: &str,
        what: &What<'_>,
    ) -> Result<Vec<T>, Error> {
        let (Page { mut items, total }, _) = self.page::<T>(path, 1, what).await?;
        let found = total.map_or(items.len(), |total| total.min(MOST_FOUND));
        let last = found.div_ceil(PER_PAGE);
        if last > 1 {
            items.extend(self.page(path, last, what).await?.0.items);
        }
        Ok(items)
    }

    /// A page of a list. `path` has no page in its query.
    async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        number: usize,
        what: &What<'_>,
    ) -> Result<(Page<T>, Answer), Error> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}per_page={PER_PAGE}&page={number}");
        let (ask, answer) = self.tagged(path, what.action).await?;
        if answer.status != StatusCode::OK {
            return Err(self.judged(&answer, &ask, what.permission));
        }
        Ok((answer.json(&ask)?, answer))
    }

    /// A place for what somebody keeps of answers, and takes so many bytes; `None` where there is none left.
    #[must_use]
    pub fn place(&self, size: usize) -> Option<Held<()>> {
        let place = self.transport.room.keep(size)?;
        Some(Held::new((), place))
    }

    /// Finds a place for what is kept of answers to `action`, and takes so many bytes.
    pub(super) fn held<T>(&self, value: T, size: usize, action: &str) -> Result<Held<T>, Error> {
        let place = self.transport.room.keep(size);
        let place = place.ok_or_else(|| Error::Malformed {
            action: action.to_owned(),
            message: "the lists of all servers of the namespace are too long to be kept".into(),
        })?;
        Ok(Held::new(value, place))
    }

    /// Reads what may have gone, for nothing where it has not changed. `None` proves nothing: GitHub hides what the
    /// credentials may not see.
    pub(super) async fn ask_tagged<T: DeserializeOwned>(
        &self,
        path: String,
        what: &What<'_>,
    ) -> Result<Option<T>, Error> {
        let (ask, answer) = self.tagged(path, what.action).await?;
        match answer.status {
            StatusCode::OK => answer.json(&ask).map(Some),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            _ => Err(self.judged(&answer, &ask, what.permission)),
        }
    }

    /// Reads for nothing what has not changed: that is answered with 200, too.
    pub(super) async fn tagged(&self, path: String, action: &str) -> Result<(Ask, Answer), Error> {
        let last = self.tagged.last(&path);
        let ask = Ask {
            tag: last.as_ref().map(|(tag, _)| tag.clone()),
            ..Ask::get(path.clone(), action)
        };
        let answer = self.transport.send(&ask).await?;
        let answer = match (answer.status, last) {
            (StatusCode::OK, _) => {
                // What is no JSON at all is not kept.
                answer.json::<IgnoredAny>(&ask)?;
                self.keep(path, &answer);
                answer
            }
            (StatusCode::NOT_MODIFIED, Some((_, body))) => answer.unchanged(body),
            _ => answer,
        };
        Ok((ask, answer))
    }

    fn keep(&self, path: String, answer: &Answer) {
        let mut kept = self.tagged.fresh();
        kept.remove(&path);
        if kept.len() >= MOST_KEPT {
            return;
        }
        let room = &self.transport.room;
        let place = room.keep_tagged(path.len() + answer.body().len());
        if let (Some(tag), Some(place)) = (answer.tag(), place) {
            let kept_answer = Kept {
                tag,
                body: answer.body().clone(),
                asked: Instant::now(),
                _place: place,
            };
            kept.insert(path, kept_answer);
        }
    }
}
