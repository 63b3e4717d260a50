//! A forward proxy: it connects where it is asked to, knows a name that nobody else does, and counts.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader,
        copy_bidirectional,
    },
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

/// Who is let in, and how the proxy itself is reached.
#[derive(Clone, Default)]
pub struct Door {
    /// The value of `proxy-authorization` that is asked for.
    pub user: Option<String>,
    /// What it answers by TLS with.
    pub tls: Option<TlsAcceptor>,
}

/// A proxy that serves until it is dropped.
#[derive(Debug)]
pub struct ForwardProxy {
    /// Its URL.
    pub url: String,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl ForwardProxy {
    /// Starts one at this address that knows a name, with the server that it is of.
    pub async fn start(
        address: IpAddr,
        known: (&'static str, SocketAddr),
        door: Door,
    ) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))
            .await
            .with_context(|| format!("no proxy can listen on {address}"))?;
        let scheme = if door.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let connections = Arc::default();
        let serving = serve(listener, known, door, Arc::clone(&connections));
        let task = tokio::spawn(serving).abort_handle();
        Ok(Self {
            url,
            connections,
            task,
        })
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    known: (&'static str, SocketAddr),
    door: Door,
    made: Arc<AtomicUsize>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (door, made) = (door.clone(), Arc::clone(&made));
        // One that breaks off is told by who asked.
        tokio::spawn(async move {
            match door.tls {
                Some(tls) => tunnel(tls.accept(client).await?, known, door.user, made).await,
                None => tunnel(client, known, door.user, made).await,
            }
        });
    }
}

/// <https://www.rfc-editor.org/rfc/rfc9110#name-connect>
async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    (name, address): (&str, SocketAddr),
    user: Option<String>,
    made: Arc<AtomicUsize>,
) -> Result<()> {
    let mut client = BufReader::new(client);
    let mut request = String::new();
    client.read_line(&mut request).await?;
    let mut line = String::from("-");
    let mut shown = None;
    while !line.trim().is_empty() {
        line.clear();
        client.read_line(&mut line).await?;
        if let Some((field, value)) = line.split_once(':')
            && field.eq_ignore_ascii_case("proxy-authorization")
        {
            shown = Some(value.trim().to_owned());
        }
    }
    if user.is_some() && shown != user {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
        client.write_all(refusal).await?;
        return Ok(());
    }
    let mut words = request.split_whitespace();
    let (Some("CONNECT"), Some(to)) = (words.next(), words.next()) else {
        client
            .write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
            .await?;
        return Ok(());
    };
    let is_known = to.split(':').next() == Some(name);
    let mut server = if is_known {
        TcpStream::connect(address).await?
    } else {
        TcpStream::connect(to).await?
    };
    made.fetch_add(1, Ordering::Relaxed);
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
