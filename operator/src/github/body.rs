//! Bodies of answers: read within bounds, so that no server can fill the operator's memory.
//!
//! Each answer has a longest length, a list has a most of items, and all answers of all servers together have room for so
//! much: who finds it full waits, until the deadline of the request ends it. Short answers, which most are, have a room of
//! their own; a long one takes its whole place at once, and must then come at a fair speed. So servers that answer at
//! length hold up one another alone.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A page of a hundred jobs or runs is some 2 MiB.
pub(super) const LONGEST_ANSWER: usize = 4 * 1024 * 1024;
/// The Actions service lists all runners of a scope at once: ten thousand are some 2 MiB.
pub(super) const LONGEST_LIST: usize = 8 * 1024 * 1024;
/// A refusal is a few sentences; of more, only this much is read.
pub(super) const LONGEST_REFUSAL: usize = 64 * 1024;
/// A longer answer is a long one.
const SHORT: usize = 64 * 1024;
/// Of all short answers, and beginnings of long ones, that are read or judged at a time.
const ROOM_OF_SHORT: usize = 8 * 1024 * 1024;
/// Of all long ones.
const ROOM_OF_LONG: usize = 16 * 1024 * 1024;
/// So much time has a long answer once it has its place: the longest comes with 6 Mbit/s.
const TIME_OF_LONG: Duration = Duration::from_secs(10);
/// Of all answers that are kept, to be told for nothing that they still hold.
const KEPT: usize = 24 * 1024 * 1024;
/// GitHub's longest page.
pub(super) const PER_PAGE: usize = 100;
/// More labels than this no runner or job has.
pub(super) const MOST_LABELS: usize = 200;
/// The names under which GitHub's answers hold their lists.
const LISTS: [&str; 5] = [
    "jobs",
    "workflow_runs",
    "check_runs",
    "runner_groups",
    "runners",
];

/// The room that all answers of the process share.
#[derive(Clone)]
pub(super) struct Room {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    kept: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            short: Arc::new(Semaphore::new(ROOM_OF_SHORT)),
            long: Arc::new(Semaphore::new(ROOM_OF_LONG)),
            kept: Arc::new(Semaphore::new(KEPT)),
        }
    }
}

impl Room {
    /// A place for a body that is kept; `None` where there is none left.
    pub(super) fn keep(&self, length: usize) -> Option<OwnedSemaphorePermit> {
        let length = u32::try_from(length).ok()?;
        Arc::clone(&self.kept).try_acquire_many_owned(length).ok()
    }

    /// Reads a body. Beyond `most` it is cut off where `may_cut`, and refused else.
    pub(super) async fn read<B>(
        &self,
        mut body: B,
        most: usize,
        may_cut: bool,
    ) -> Result<Whole, Broken>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut place, mut pieces) = (None, Vec::new());
        let mut by = None;
        while let Some(frame) = next(&mut body, by).await? {
            let Ok(mut piece) = frame.into_data() else {
                continue;
            };
            let left = most - pieces.len();
            if piece.len() > left && !may_cut {
                return Err(Broken::TooLong(most));
            }
            let is_last = piece.len() >= left && may_cut;
            piece.truncate(left);
            let length = pieces.len() + piece.len();
            if by.is_none() && length > SHORT {
                // All of it: who waits for more while he holds some may wait for one that waits for him.
                let rest = body.size_hint().upper().unwrap_or(u64::MAX);
                let rest = usize::try_from(rest).unwrap_or(usize::MAX);
                place = hold(&self.long, most.min(length.saturating_add(rest))).await;
                by = Some(Instant::now() + TIME_OF_LONG);
            } else if by.is_none() {
                let more = hold(&self.short, piece.len()).await;
                match (&mut place, more) {
                    (Some(place), Some(more)) => place.merge(more),
                    (place, more) => *place = more,
                }
            }
            pieces.extend_from_slice(&piece);
            if is_last {
                break;
            }
        }
        Ok(Whole {
            bytes: pieces.into(),
            _place: place,
        })
    }
}

/// The next piece of a body, if it comes in time.
async fn next<B>(body: &mut B, by: Option<Instant>) -> Result<Option<Frame<Bytes>>, Broken>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let frame = match by {
        Some(by) => timeout_at(by, body.frame())
            .await
            .map_err(|_| Broken::Off("its body comes too slowly".into()))?,
        None => body.frame().await,
    };
    let frame = frame.transpose();
    frame.map_err(|error| Broken::Off(error.into()))
}

/// A place for so many bytes. The semaphore is never closed.
async fn hold(room: &Arc<Semaphore>, length: usize) -> Option<OwnedSemaphorePermit> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    Arc::clone(room).acquire_many_owned(length).await.ok()
}

/// A body that was read, with its place in the room.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl From<Bytes> for Whole {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            _place: None,
        }
    }
}

/// Why a body was not read.
pub(super) enum Broken {
    /// It broke off.
    Off(Box<dyn std::error::Error + Send + Sync>),
    /// It is longer than this.
    TooLong(usize),
}

/// A list of at most `MOST` items. A longer one is refused before it is built.
#[derive(Debug)]
pub(super) struct AtMost<T, const MOST: usize>(pub(super) Vec<T>);

impl<T, const MOST: usize> Default for AtMost<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_seq(Items::<T, MOST>(PhantomData))
            .map(Self)
    }
}

struct Items<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut read = Vec::new();
        while let Some(item) = items.next_element()? {
            if read.len() == MOST {
                return Err(A::Error::custom(format_args!("more than {MOST} items")));
            }
            read.push(item);
        }
        Ok(read)
    }
}

/// Longer than any name, label or address of GitHub's.
const LONGEST_TEXT: usize = 1024;

/// A text that is kept as it is. One of absurd length is refused.
#[derive(Debug, Default)]
pub(super) struct Short(pub(super) String);

impl<'de> Deserialize<'de> for Short {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > LONGEST_TEXT {
            return Err(D::Error::custom("a text of absurd length"));
        }
        Ok(Self(text))
    }
}

/// For fields: see [`Short`].
pub(super) fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Short::deserialize(deserializer).map(|text| text.0)
}

/// For fields that may be null: see [`Short`].
pub(super) fn short_or_none<'de, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<Short>::deserialize(deserializer)?.map(|text| text.0))
}

/// For fields whose null is as good as an empty text.
pub(super) fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// For labels: see [`Short`] and [`AtMost`].
pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let labels = AtMost::<Short, MOST_LABELS>::deserialize(deserializer)?;
    Ok(labels.0.into_iter().map(|label| label.0).collect())
}

/// A page of a list, as GitHub gives it: the items alone, or an object that holds them and says how many there are.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) total: Option<usize>,
    pub(super) items: Vec<T>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Page<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PageOf(PhantomData))
    }
}

struct PageOf<T>(PhantomData<T>);

/// A number of things, which GitHub's description calls a number and not an integer.
#[derive(Deserialize)]
struct Count(#[serde(deserialize_with = "whole")] usize);

/// For such fields.
pub(super) fn whole<'de, D, N>(deserializer: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: std::str::FromStr,
{
    let text = serde_json::Number::deserialize(deserializer)?.to_string();
    let digits = text.strip_suffix(".0").unwrap_or(&text);
    let number = digits.parse();
    number.map_err(|_| D::Error::custom("no whole number"))
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for PageOf<T> {
    type Value = Page<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a page of at most {PER_PAGE} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Page<T>, A::Error> {
        let items = Items::<T, PER_PAGE>(PhantomData).visit_seq(items)?;
        Ok(Page { total: None, items })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page<T>, A::Error> {
        let (mut total, mut items) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            if key == "total_count" {
                total = Some(map.next_value::<Count>()?.0);
            } else if LISTS.contains(&key.as_str()) {
                items = Some(map.next_value::<AtMost<T, PER_PAGE>>()?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        let items = items.ok_or_else(|| A::Error::custom("no list"))?;
        Ok(Page { total, items })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body_util::{Full, StreamBody};

    use super::*;

    fn pieces(count: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let piece = || Ok(Frame::data(Bytes::from_static(&[b'x'; 1024])));
        StreamBody::new(futures::stream::iter(
            std::iter::repeat_with(piece).take(count),
        ))
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_bound_and_no_further() {
        let room = Room::default();
        let whole = room.read(pieces(4), 4096, false).await.ok().unwrap();
        assert_eq!(whole.bytes.len(), 4096);
        assert_eq!(room.short.available_permits(), ROOM_OF_SHORT - 4096);
        drop(whole);
        assert_eq!(room.short.available_permits(), ROOM_OF_SHORT, "given back");

        let refused = room.read(pieces(5), 4096, false).await;
        assert!(matches!(refused, Err(Broken::TooLong(4096))));
        // A refusal without an end
        let cut = room
            .read(pieces(usize::MAX), 5000, true)
            .await
            .ok()
            .unwrap();
        assert_eq!(cut.bytes.len(), 5000);
    }

    #[tokio::test]
    async fn answers_wait_for_room_and_what_is_kept_does_not() {
        let room = Room::default();
        let body = |length| Full::new(Bytes::from(vec![b'x'; length]));
        // Given long answers that fill their room
        let first = room.read(body(ROOM_OF_LONG), ROOM_OF_LONG, false);
        let first = first.await.ok().unwrap();

        // When another long one comes, and a short one
        let second = room.read(body(2 * SHORT), 4 * SHORT, false);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());

        // Then the short one waits for nobody, and the long one for a place as long as it is
        assert!(room.read(pieces(1), 4096, false).await.is_ok());
        drop(first);
        let second = second.await.ok().unwrap();
        assert_eq!(room.long.available_permits(), ROOM_OF_LONG - 2 * SHORT);
        assert_eq!(room.short.available_permits(), ROOM_OF_SHORT);
        drop(second);

        let kept = room.keep(KEPT).unwrap();
        assert!(room.keep(1).is_none());
        drop(kept);
        assert!(room.keep(1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_of_long_answers_holds_another_up_for_ever() {
        // Given more servers than there is room for, each of which ends within its last kibibyte
        let room = Room::default();
        let slow = || {
            let most = pieces(LONGEST_ANSWER / 1024 - 1);
            let end =
                StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>());
            async { room.read(Chained(most, end), LONGEST_ANSWER, false).await }
        };
        let all = futures::future::join_all(std::iter::repeat_with(slow).take(12));

        // Then each is given up in its turn: twelve of four at a time
        let start = Instant::now();
        let ended = all.await;
        assert!(ended.iter().all(|end| matches!(end, Err(Broken::Off(_)))));
        assert_eq!(start.elapsed().as_secs(), 3 * TIME_OF_LONG.as_secs());
    }

    /// One body after another.
    struct Chained<A, B>(A, B);

    impl<A, B> Body for Chained<A, B>
    where
        A: Body<Data = Bytes, Error = Infallible> + Unpin,
        B: Body<Data = Bytes, Error = Infallible> + Unpin,
    {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match Pin::new(&mut self.0).poll_frame(cx) {
                Poll::Ready(None) => Pin::new(&mut self.1).poll_frame(cx),
                first => first,
            }
        }
    }

    #[test]
    fn a_longer_list_than_was_asked_for_is_refused() {
        let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
        let page = |text: &str| serde_json::from_str::<Page<u8>>(text);
        assert_eq!(page(&list(100)).unwrap().items.len(), 100);
        assert!(page(&list(101)).is_err());
        let object = |count| {
            format!(
                r#"{{"total_count": 7, "more": {{}}, "jobs": {}}}"#,
                list(count)
            )
        };
        assert_eq!(page(&object(2)).unwrap().total, Some(7));
        assert!(page(&object(883_000)).is_err());
        assert!(page(r#"{"total_count": 7}"#).is_err(), "no list at all");
    }
}
