//! The way through a proxy, and around it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::stub::{NOW, Stub, here_by_tls, page, reply};
use crate::github::{Proxy, ProxyUser, ProxyWay};

/// What a proxy was asked, head by head.
type Asked = Arc<Mutex<Vec<String>>>;

/// A proxy that connects where it is asked to, for who shows `user`, and remembers what it was asked; by TLS where it has
/// a way to. Gives its address without the scheme.
async fn proxy(user: Option<&'static str>, tls: Option<TlsAcceptor>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Asked::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (seen, tls) = (seen.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => connect(tls.accept(client).await.unwrap(), user, seen).await,
                    None => connect(client, user, seen).await,
                }
            });
        }
    });
    (address, asked)
}

async fn connect(mut client: impl AsyncRead + AsyncWrite + Unpin, user: Option<&str>, seen: Asked) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    let shown = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("proxy-authorization: ")
            .map(|_| line)
    });
    let shown = shown
        .and_then(|line| line.split_once(": "))
        .map(|(_, user)| user);
    if shown != user {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
        client.write_all(refusal).await.unwrap();
        return;
    }
    let target = head.split(' ').nth(1).unwrap();
    let mut server = TcpStream::connect(target).await.unwrap();
    let done = b"HTTP/1.1 200 Connection established\r\n\r\n";
    client.write_all(done).await.unwrap();
    // Either side may hang up.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

fn way(url: &str, no_proxy: &[&str], user: Option<ProxyUser>) -> ProxyWay {
    let no_proxy: Vec<_> = no_proxy.iter().map(|host| (*host).to_owned()).collect();
    ProxyWay {
        proxy: Proxy::parse(url, &no_proxy).unwrap(),
        user,
    }
}

fn user(name: &str, password: &str) -> ProxyUser {
    let data = [("username", name), ("password", password)];
    let data = data.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
    ProxyUser::from_secret_data(&BTreeMap::from(data)).unwrap()
}

#[tokio::test]
async fn requests_go_through_the_proxy_unless_the_server_is_an_exception() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let (address, asked) = proxy(None, None).await;
    let address = format!("http://{address}");

    let client = stub.client_through("o/r", &way(&address, &[], None), "");
    client.list_runners(NOW).await.unwrap();
    let expected = format!("CONNECT {} HTTP/1.1", stub.address());
    let first = asked.lock().unwrap()[0].lines().next().map(str::to_owned);
    assert_eq!(first, Some(expected));

    let client = stub.client_through("o/r", &way(&address, &["127.0.0.1"], None), "");
    client.list_runners(NOW).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 1, "an exception");
    assert_eq!(stub.seen().len(), 2);
}

#[tokio::test]
async fn a_user_is_shown_to_the_proxy_and_to_nobody_else() {
    // `me:p@ss`
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let (address, _) = proxy(Some("Basic bWU6cEBzcw=="), None).await;
    let address = format!("http://{address}");

    let right = way(&address, &[], Some(user("me", "p%40ss")));
    let client = stub.client_through("o/r", &right, "");
    client.list_runners(NOW).await.unwrap();
    let seen = stub.seen();
    assert_eq!(seen[0].header("proxy-authorization"), None);

    for wrong in [None, Some(user("me", "other"))] {
        let client = stub.client_through("o/r", &way(&address, &[], wrong), "");
        let error = client.list_runners(NOW).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains("spec.github.proxy.credentialsRef"), "{said}");
        assert!(error.is_transient(), "a proxy may know the user later");
    }
}

#[tokio::test]
async fn a_proxy_may_be_reached_by_tls_and_is_held_to_its_certificate() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let (tls, authority) = here_by_tls();
    let (address, asked) = proxy(Some("Basic bWU6cEBzcw=="), Some(TlsAcceptor::from(tls))).await;
    let through = way(
        &format!("https://{address}"),
        &[],
        Some(user("me", "p%40ss")),
    );

    let client = stub.client_through("o/r", &through, &authority);
    client.list_runners(NOW).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 1);

    let client = stub.client_through("o/r", &through, "");
    let error = client.list_runners(NOW).await.unwrap_err();
    assert!(error.to_string().contains("proxy"), "{error}");
    assert_eq!(
        asked.lock().unwrap().len(),
        1,
        "the user is shown to no stranger"
    );
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_named() {
    let stub = Stub::start(|_, _| reply(200, &json!({}))).await;
    // A port that nobody gets.
    let nobody = "http://127.0.0.1:1";
    let error = stub
        .client_through("o/r", &way(nobody, &[], None), "")
        .list_runners(NOW)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(error.is_transient());
}
