//! The events of a watch, one by one, on their way to the operator.

use std::sync::Arc;

use axum::body::Body;
use futures::stream;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use tokio::sync::mpsc::{self, Sender};

use super::{
    fault::{Fault, STALL},
    progress::Progress,
    request::Kind,
};

/// Why a stream ends.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the watch is cut on purpose")
    }
}

impl std::error::Error for Cut {}

type Piece = Result<Bytes, Cut>;

/// The body that the operator gets.
pub(super) fn watch(progress: Arc<Progress>, kind: Kind, events: Incoming) -> Body {
    let (sender, receiver) = mpsc::channel::<Piece>(64);
    tokio::spawn(async move {
        let hangs_up = sender.clone();
        tokio::select! {
            () = relay(&progress, &kind, events, &sender) => (),
            () = hangs_up.closed() => (),
        }
    });
    let pieces = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Body::from_stream(pieces)
}

async fn relay(progress: &Progress, kind: &Kind, mut events: Incoming, to: &Sender<Piece>) {
    let mut rest = Vec::new();
    // What was told so far, for telling it again.
    let mut reported = Vec::new();
    while let Some(Ok(frame)) = events.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if !one(progress, kind, &line, &reported, to).await {
                return;
            }
            reported.extend_from_slice(&line);
        }
    }
}

/// Passes one event on; whether the watch goes on after it.
async fn one(
    progress: &Progress,
    kind: &Kind,
    line: &[u8],
    reported: &[u8],
    to: &Sender<Piece>,
) -> bool {
    // Bookmarks come when the server likes.
    let counts = !line.starts_with(br#"{"type":"BOOKMARK""#);
    let send = async |piece: Piece| to.send(piece).await.is_ok();
    match counts.then(|| progress.meet(kind)).flatten() {
        Some(Fault::Stall) => {
            tokio::time::sleep(STALL).await;
            progress.over();
        }
        Some(Fault::Rewind) => {
            progress.over();
            if !send(Ok(Bytes::copy_from_slice(reported))).await {
                return false;
            }
        }
        Some(Fault::Gone) => {
            progress.over();
            if let Some((_, status)) = Fault::Gone.answer(kind.server) {
                let error = format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n");
                send(Ok(error.into())).await;
            }
            return false;
        }
        Some(_) => {
            progress.over();
            send(Err(Cut)).await;
            return false;
        }
        None => (),
    }
    send(Ok(Bytes::copy_from_slice(line))).await
}
