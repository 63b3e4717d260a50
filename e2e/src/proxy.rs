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
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// A proxy that serves until it is dropped.
#[derive(Debug)]
pub struct ForwardProxy {
    /// Its URL.
    pub url: String,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl ForwardProxy {
    /// Starts one at this address, for which `name` is `server`.
    pub async fn start(address: IpAddr, name: &'static str, server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))
            .await
            .with_context(|| format!("no proxy can listen on {address}"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let known = (name, server);
        let connections = Arc::default();
        let task = tokio::spawn(serve(listener, known, Arc::clone(&connections))).abort_handle();
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

async fn serve(listener: TcpListener, known: (&'static str, SocketAddr), made: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        // One that breaks off is told by who asked.
        tokio::spawn(tunnel(client, known, Arc::clone(&made)));
    }
}

/// <https://www.rfc-editor.org/rfc/rfc9110#name-connect>
async fn tunnel(
    client: TcpStream,
    (name, address): (&str, SocketAddr),
    made: Arc<AtomicUsize>,
) -> Result<()> {
    let mut client = BufReader::new(client);
    let mut request = String::new();
    client.read_line(&mut request).await?;
    let mut line = String::from("-");
    while !line.trim().is_empty() {
        line.clear();
        client.read_line(&mut line).await?;
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
