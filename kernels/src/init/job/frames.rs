//! What goes over the job's socket: frames of one byte for the kind, four for the length, and so many more. Whoever
//! connects may send anything, so nothing is taken that is longer than its kind allows, and no room is made before the
//! bytes are there.

/// Bytes before the content.
const HEAD: usize = 5;
/// Longest piece of a step's output.
pub(crate) const PIECE: usize = 64 * 1024;
/// Longest sentence.
const SENTENCE: usize = 8 * 1024;
/// Longest request: an environment is in it.
pub(crate) const REQUEST: usize = 4 * 1024 * 1024;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// To the job's container: what is to be done, as JSON.
    Request(Vec<u8>),
    /// To the job's container: a signal for the step.
    Signal(u8),
    /// Of the step.
    Stdout(Vec<u8>),
    /// Of the step.
    Stderr(Vec<u8>),
    /// The step's own exit code. The last frame.
    Exit(u8),
    /// There is no exit code, for this reason. The last frame.
    Failed(String),
    /// What is no step is done, with an answer as JSON. The last frame.
    Done(Vec<u8>),
}

impl Frame {
    /// As it is sent. What is too long is cut: only a sentence can be.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let one;
        let (kind, content): (u8, &[u8]) = match self {
            Self::Request(json) => (b'r', json),
            Self::Signal(number) => {
                one = [*number];
                (b's', &one)
            }
            Self::Stdout(bytes) => (b'o', bytes),
            Self::Stderr(bytes) => (b'e', bytes),
            Self::Exit(code) => {
                one = [*code];
                (b'x', &one)
            }
            Self::Failed(sentence) => (
                b'f',
                &sentence.as_bytes()[..sentence.floor_char_boundary(SENTENCE)],
            ),
            Self::Done(json) => (b'd', json),
        };
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        [&[kind][..], &length.to_be_bytes(), content].concat()
    }

    fn read(kind: u8, content: &[u8]) -> Option<Self> {
        Some(match (kind, content) {
            (b'r', json) => Self::Request(json.to_vec()),
            (b's', [number]) => Self::Signal(*number),
            (b'o', bytes) => Self::Stdout(bytes.to_vec()),
            (b'e', bytes) => Self::Stderr(bytes.to_vec()),
            (b'x', [code]) => Self::Exit(*code),
            (b'f', text) => Self::Failed(String::from_utf8_lossy(text).into_owned()),
            (b'd', json) => Self::Done(json.to_vec()),
            _ => return None,
        })
    }
}

/// How long the content of a kind may be.
fn limit(kind: u8) -> Option<usize> {
    Some(match kind {
        b'r' => REQUEST,
        b's' | b'x' => 1,
        b'o' | b'e' | b'd' => PIECE,
        b'f' => SENTENCE,
        _ => return None,
    })
}

/// What was sent is no frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rubbish;

/// Puts frames together from pieces as they come.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// Takes what came.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until the rest of it is here.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>, Rubbish> {
        let Some((&[kind, a, b, c, d], rest)) = self.0.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| Rubbish)?;
        if limit(kind).is_none_or(|limit| length > limit) {
            return Err(Rubbish);
        }
        let Some(content) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame::read(kind, content).ok_or(Rubbish)?;
        self.0.drain(..HEAD + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All frames that come out, whatever the pieces.
    fn read(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
        let (mut frames, mut read) = (Frames::default(), vec![]);
        for piece in bytes.chunks(piece) {
            frames.add(piece);
            loop {
                match frames.take() {
                    Ok(Some(frame)) => read.push(frame),
                    Ok(None) => break,
                    Err(Rubbish) => return (read, false),
                }
            }
        }
        (read, true)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            bytes().prop_map(Frame::Request),
            any::<u8>().prop_map(Frame::Signal),
            bytes().prop_map(Frame::Stdout),
            bytes().prop_map(Frame::Stderr),
            any::<u8>().prop_map(Frame::Exit),
            "\\PC{0,50}".prop_map(Frame::Failed),
            bytes().prop_map(Frame::Done),
        ]
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_however_it_is_cut(
            sent in proptest::collection::vec(frame(), 0..8),
            piece in 1..64_usize,
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(Frame::bytes).collect();
            prop_assert_eq!(read(&bytes, piece), (sent, true));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            piece in 1..64_usize,
        ) {
            let (frames, good) = read(&bytes, piece);
            let again: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
            // Text that is none changes its length.
            let is_text = |frame: &Frame| matches!(frame, Frame::Failed(_));
            if !frames.iter().any(is_text) {
                prop_assert!(bytes.starts_with(&again));
            }
            prop_assert_eq!(read(&bytes, bytes.len().max(1)), (frames, good));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_here() {
        for (kind, limit) in [(b'r', REQUEST), (b's', 1), (b'o', PIECE), (b'f', SENTENCE)] {
            for (length, good) in [(limit, true), (limit + 1, false)] {
                let length = u32::try_from(length).unwrap().to_be_bytes();
                let head = [&[kind][..], &length].concat();
                assert_eq!(read(&head, 100), (vec![], good), "{}", char::from(kind));
            }
        }
        let long = "ü".repeat(SENTENCE);
        let (frames, good) = read(&Frame::Failed(long.clone()).bytes(), 1000);
        assert!(good && matches!(&frames[..], [Frame::Failed(text)] if long.starts_with(text)));
    }
}
