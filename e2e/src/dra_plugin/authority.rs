//! A kubelet names the path of a registration socket as the authority of its requests, as gRPC for Go does with such a target:
//! `%2Fvar%2Flib…`. The crate `http` takes no such authority and refuses the request, so it is given another one on its way:
//! of the same length, so that nothing else changes.

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy, duplex, split},
    net::UnixStream,
};

/// What a client of HTTP/2 begins with, in bytes. RFC 9113, 3.4.
const PREFACE: usize = 24;
/// A frame's header, in bytes: length, type, flags, stream. RFC 9113, 4.1.
const HEADER: usize = 9;
/// The type of a frame with headers.
const HEADERS: u8 = 1;
/// A literal that joins the dynamic table, with the first name of the static one. RFC 7541, 6.2.1 and appendix A.
const AUTHORITY: u8 = 0x41;

/// The kubelet's connection as a server can read it.
pub(super) fn readable(kubelet: UnixStream) -> DuplexStream {
    let (ours, theirs) = duplex(64 * 1024);
    tokio::spawn(async move {
        let (from_kubelet, mut to_kubelet) = kubelet.into_split();
        let (mut from_server, to_server) = split(ours);
        // Whoever ends first ends the connection.
        tokio::select! {
            _ = copy(&mut from_server, &mut to_kubelet) => {}
            _ = requests(from_kubelet, to_server) => {}
        }
    });
    theirs
}

async fn requests(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) -> Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    loop {
        let mut frame = vec![0; HEADER];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        frame.resize(HEADER + usize::try_from(length)?, 0);
        from.read_exact(&mut frame[HEADER..]).await?;
        if frame[3] == HEADERS {
            rename(&mut frame[HEADER..]);
        }
        to.write_all(&frame).await?;
    }
}

/// Changes the authority of a block of headers. Fields with a name of the client's own come later.
fn rename(block: &mut [u8]) {
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        let is_indexed = first & 0x80 != 0;
        let is_table_size = first & 0xe0 == 0x20;
        if is_indexed || is_table_size {
            at += 1;
            continue;
        }
        let Some(length) = block.get(at + 1).map(|length| length & 0x7f) else {
            return;
        };
        let value = at + 2..at + 2 + usize::from(length);
        if first == AUTHORITY {
            // Without the bit that says that it is compressed.
            block[at + 1] = length;
            if let Some(bytes) = block.get_mut(value) {
                bytes.fill(b'k');
            }
            return;
        }
        at = value.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_alone_is_another_one() {
        // :method POST, :scheme http, :path /a, :authority in compressed form, and a field of the client's
        let mut block = vec![
            0x83, 0x86, 0x44, 2, b'/', b'a', 0x41, 0x83, 0xf1, 0xe3, 0xc2, 0x40, 1, b'x', 1, b'y',
        ];
        rename(&mut block);
        let renamed = [
            0x83, 0x86, 0x44, 2, b'/', b'a', 0x41, 3, b'k', b'k', b'k', 0x40, 1, b'x', 1, b'y',
        ];
        assert_eq!(block, renamed);
        // A later request has it from the table
        let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'b', 0xbe];
        let before = block.clone();
        rename(&mut block);
        assert_eq!(block, before);
    }
}
