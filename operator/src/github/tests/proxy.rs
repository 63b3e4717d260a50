//! The way through a proxy, and around it.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::stub::{NOW, Stub, page, reply};
use crate::github::Proxy;

/// A proxy that connects where it is asked to, and remembers where that was.
async fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            seen.lock()
                .unwrap()
                .push(head.lines().next().unwrap().to_owned());
            let mut server = TcpStream::connect(target).await.unwrap();
            client
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await
                .unwrap();
            tokio::spawn(async move {
                // Either side may hang up.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn requests_go_through_the_proxy_unless_the_server_is_an_exception() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let (address, asked) = proxy().await;

    let through = Proxy::parse(&address, &[]).unwrap();
    let client = stub.client_through("o/r", &through);
    client.list_runners(NOW).await.unwrap();
    let expected = format!("CONNECT {} HTTP/1.1", stub.address());
    assert_eq!(*asked.lock().unwrap(), [expected]);

    let around = Proxy::parse(&address, &["127.0.0.1".to_owned()]).unwrap();
    let client = stub.client_through("o/r", &around);
    client.list_runners(NOW).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 1, "an exception");
    assert_eq!(stub.seen().len(), 2);
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_named() {
    let stub = Stub::start(|_, _| reply(200, &json!({}))).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let proxy = Proxy::parse(&nobody, &[]).unwrap();
    let error = stub
        .client_through("o/r", &proxy)
        .list_runners(NOW)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(error.is_transient());
}
