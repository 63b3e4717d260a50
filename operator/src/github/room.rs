//! The room for answers: no server can fill the operator's memory, nor keep the room for itself.
//!
//! All answers together have room for so much; so have those for the pools of a namespace, and those of one server to one
//! credential. Who finds it full waits, until the deadline of the request ends it: for others of its own namespace first.
//! Short answers, which most are, have a room of their own; a long one takes its whole place at once. Once it has its
//! place, an answer must come at a fair speed. What is kept of answers has a room of its own, in which nobody waits.

use std::{ops::Deref, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A longer answer is a long one.
const SHORT: usize = 64 * 1024;
/// So much time has an answer once it has its place: the longest comes with 6 Mbit/s.
const TIME: Duration = Duration::from_secs(10);

/// Bytes, at a time.
struct Size {
    /// Of short answers, and beginnings of long ones, that are read or judged.
    short: usize,
    /// Of long ones.
    long: usize,
    /// Of what is kept.
    kept: usize,
    /// Of answers that are kept for the sake of their tags alone, and could be asked for again.
    tagged: usize,
}

const WHOLE: Size = Size {
    short: 8 * 1024 * 1024,
    long: 16 * 1024 * 1024,
    kept: 24 * 1024 * 1024,
    tagged: 16 * 1024 * 1024,
};
/// Whoever may make pools in a namespace may name any number of servers: all of them together leave room to others.
const NAMESPACE: Size = Size {
    short: 2 * 1024 * 1024,
    long: 8 * 1024 * 1024,
    kept: 12 * 1024 * 1024,
    tagged: 8 * 1024 * 1024,
};
/// A server has room for the longest answer, and to be asked by many pools. What it has kept is a list twice, while the
/// next one is read, and the rest.
const SERVER: Size = Size {
    short: 1024 * 1024,
    long: 8 * 1024 * 1024,
    kept: 8 * 1024 * 1024,
    tagged: 4 * 1024 * 1024,
};

/// Room for answers: of all servers, of those of a namespace, or of one.
pub(super) struct Room {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    kept: Arc<Semaphore>,
    tagged: Arc<Semaphore>,
    /// What it is a part of.
    above: Option<Arc<Self>>,
}

impl Room {
    fn new(size: &Size, above: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            short: Arc::new(Semaphore::new(size.short)),
            long: Arc::new(Semaphore::new(size.long)),
            kept: Arc::new(Semaphore::new(size.kept)),
            tagged: Arc::new(Semaphore::new(size.tagged)),
            above,
        })
    }

    /// Of all answers of the process.
    pub(super) fn whole() -> Arc<Self> {
        Self::new(&WHOLE, None)
    }

    /// A namespace's part.
    pub(super) fn of_namespace(whole: &Arc<Self>) -> Arc<Self> {
        Self::new(&NAMESPACE, Some(Arc::clone(whole)))
    }

    /// The part of a server, for one credential.
    pub(super) fn of_server(namespace: &Arc<Self>) -> Arc<Self> {
        Self::new(&SERVER, Some(Arc::clone(namespace)))
    }

    /// The rooms that a place is taken in: the own one first.
    fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |room| room.above.as_deref())
    }

    /// Waits for a place of so many bytes.
    async fn hold(&self, of: impl Fn(&Self) -> &Arc<Semaphore>, length: usize) -> Place {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let mut place = Place::default();
        for room in self.all() {
            // The semaphore is never closed.
            let held = Arc::clone(of(room)).acquire_many_owned(length).await;
            place.0.extend(held.ok());
        }
        place
    }

    /// A place of so many bytes for what is kept; `None` where there is none left.
    pub(super) fn keep(&self, length: usize) -> Option<Place> {
        self.find(|room| &room.kept, length)
    }

    /// The same for an answer that is kept for the sake of its tag.
    pub(super) fn keep_tagged(&self, length: usize) -> Option<Place> {
        self.find(|room| &room.tagged, length)
    }

    fn find(&self, of: impl Fn(&Self) -> &Arc<Semaphore>, length: usize) -> Option<Place> {
        let length = u32::try_from(length).ok()?;
        let held = self
            .all()
            .map(|room| Arc::clone(of(room)).try_acquire_many_owned(length).ok());
        held.collect::<Option<_>>().map(Place)
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
        let (mut place, mut pieces) = (Place::default(), Vec::new());
        let (mut by, mut is_long) = (None, false);
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
            let begins = by.is_none();
            if begins || (!is_long && length > SHORT) {
                // All of it: who waits for more while he holds some may wait for one that waits for him.
                let rest = body.size_hint().upper().unwrap_or(u64::MAX);
                let rest = usize::try_from(rest).unwrap_or(usize::MAX);
                let whole = most.min(length.saturating_add(rest));
                is_long = length > SHORT;
                place = if is_long {
                    self.hold(|room| &room.long, whole).await
                } else {
                    self.hold(|room| &room.short, whole.min(SHORT)).await
                };
                by = Some(Instant::now() + TIME);
            }
            pieces.extend_from_slice(&piece);
            if is_last {
                break;
            }
        }
        // It grows by doubling.
        pieces.shrink_to_fit();
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

/// A place in a room and in those that it is a part of, until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Place(Vec<OwnedSemaphorePermit>);

/// What is kept of answers, with its place.
#[derive(Debug)]
pub struct Held<T> {
    value: T,
    _place: Place,
}

impl<T> Held<T> {
    pub(super) const fn new(value: T, place: Place) -> Self {
        Self {
            value,
            _place: place,
        }
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A body that was read, with its place in the room.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    _place: Place,
}

impl From<Bytes> for Whole {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            _place: Place::default(),
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::future::{join_all, select};
    use http_body_util::{Full, StreamBody};
    use tokio::time::timeout;

    use super::*;

    /// The longest answer.
    const MOST: usize = 8 * 1024 * 1024;

    fn server() -> Arc<Room> {
        Room::of_server(&Room::of_namespace(&Room::whole()))
    }

    fn pieces(count: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let piece = || Ok(Frame::data(Bytes::from_static(&[b'x'; 1024])));
        StreamBody::new(futures::stream::iter(
            std::iter::repeat_with(piece).take(count),
        ))
    }

    /// So many KiB, and then nothing more.
    fn stalled(count: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let end = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>());
        Chained(pieces(count), end)
    }

    fn of_length(length: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b'x'; length]))
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_bound_and_no_further() {
        let room = server();
        let whole = room.read(of_length(4096), 4096, false).await.ok().unwrap();
        assert_eq!(whole.bytes.len(), 4096);
        for room in room.all() {
            assert!(room.short.available_permits() < WHOLE.short);
        }
        assert_eq!(room.short.available_permits(), SERVER.short - 4096);
        drop(whole);
        assert_eq!(room.short.available_permits(), SERVER.short, "given back");

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
        let room = server();
        // Given a long answer that fills the room
        let first = room.read(of_length(MOST), MOST, false).await.ok().unwrap();

        // When another long one comes, and a short one
        let second = room.read(of_length(2 * SHORT), 4 * SHORT, false);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());

        // Then the short one waits for nobody, and the long one for a place as long as it is
        assert!(room.read(pieces(1), 4096, false).await.is_ok());
        drop(first);
        let second = second.await.ok().unwrap();
        assert_eq!(room.long.available_permits(), SERVER.long - 2 * SHORT);
        assert_eq!(room.short.available_permits(), SERVER.short);
        drop(second);

        let kept = room.keep(SERVER.kept).unwrap();
        assert!(room.keep(1).is_none());
        drop(kept);
        assert!(room.keep(1).is_some());
    }

    #[test]
    fn what_is_kept_for_a_namespace_leaves_room_to_others() {
        let whole = Room::whole();
        let namespace = Room::of_namespace(&whole);
        // Given any number of servers that pools of one namespace name, each of which has all kept that it can
        let kept: Vec<_> = (0..100)
            .flat_map(|_| {
                let server = Room::of_server(&namespace);
                std::iter::from_fn(move || server.keep(1024 * 1024)).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(kept.len() * 1024 * 1024, NAMESPACE.kept);
        // Then a server of another one has all its room
        let other = Room::of_server(&Room::of_namespace(&whole));
        assert!(other.keep(SERVER.kept).is_some());
        // And what found no place has taken none
        drop(kept);
        assert_eq!(namespace.kept.available_permits(), NAMESPACE.kept);
    }

    /// A hundred servers that pools of one namespace name, each of which is always asked by several at a time, and answers
    /// with so many KiB, and then with nothing more.
    async fn besiege(whole: &Arc<Room>, lengths: [usize; 2]) {
        let namespace = Room::of_namespace(whole);
        let all = (0..100).flat_map(|_| {
            let server = Room::of_server(&namespace);
            lengths.repeat(8).into_iter().map(move |length| {
                let server = Arc::clone(&server);
                async move {
                    loop {
                        // As a request is ended: by its deadline
                        let read = server.read(stalled(length), MOST, false);
                        let _ = timeout(Duration::from_secs(30), read).await;
                    }
                }
            })
        });
        let _: Vec<()> = join_all(all).await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_of_servers_holds_up_the_answers_for_another_namespace() {
        // Given as many bad servers as anybody likes, and good ones that other namespaces have
        let whole = Room::whole();
        let siege = std::pin::pin!(besiege(&whole, [64, 65]));
        let victims = async {
            let room = Room::of_server(&Room::of_namespace(&whole));
            tokio::time::sleep(Duration::from_secs(15)).await;
            for _ in 0..20 {
                for (length, most) in [(100, 4096), (60, 4096), (2048, 4096), (4000, 8192)] {
                    // Then each good answer is read well within the deadline of its request
                    let read = room.read(pieces(length), most * 1024, false);
                    let read = timeout(Duration::from_secs(5), read).await;
                    assert!(read.is_ok_and(|read| read.is_ok()), "{length} KiB");
                }
                tokio::time::sleep(Duration::from_secs(7)).await;
            }
        };
        select(siege, std::pin::pin!(victims)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_server_holds_up_others_of_its_namespace_no_longer_than_a_request_may_take() {
        let namespace = Room::of_namespace(&Room::whole());
        let (bad, good) = (Room::of_server(&namespace), Room::of_server(&namespace));
        let always = (0..32).map(async |number| {
            loop {
                let _ = bad.read(stalled(64 + number % 2), MOST, false).await;
            }
        });
        let siege = std::pin::pin!(join_all(always));
        let victims = async {
            tokio::time::sleep(Duration::from_secs(15)).await;
            for length in [60, 100, 4000].repeat(5) {
                let read = good.read(pieces(length), MOST, false);
                let read = timeout(Duration::from_secs(20), read).await;
                assert!(read.is_ok_and(|read| read.is_ok()), "{length} KiB");
            }
        };
        let _: futures::future::Either<(Vec<()>, _), _> =
            select(siege, std::pin::pin!(victims)).await;
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
}
