//! What a job would miss in the runner's image or on the network is found before GitHub hears of the runner.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Ctx;
use super::context::SOON;

const TOOLCHAIN: &str = "nightly-2026-04-03";

/// What the pools of this suite ask of the image.
fn wanted() -> Value {
    json!({
        "commands": ["git", "curl", "tar", "cc"],
        "cudaToolkit": ">=12.0",
        "rustToolchain": TOOLCHAIN,
    })
}

fn image(toolkit: &str) -> String {
    format!("localhost/simulated-agent{toolkit}:dev")
}

fn pool(ctx: &Ctx, name: &str, toolkit: &str, preflight: &Value) -> Value {
    let template = json!({"spec": {"containers": [{"name": "runner", "image": image(toolkit)}]}});
    ctx.pool(name, json!({"preflight": preflight, "template": template}))
}

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    images_that_have_it(ctx).await.context("good images")?;
    an_image_that_lacks_much(ctx).await.context("a bad image")?;
    an_image_without_toolkit(ctx).await.context("no toolkit")?;
    addresses(ctx).await.context("addresses")
}

/// 12.4 with its compiler and the Rust toolchain; 13.1 as libraries only, without the toolchain.
async fn images_that_have_it(ctx: &Ctx) -> Result<()> {
    for (name, toolkit, is_warned) in [
        ("cuda-12-4", "-cuda-12.4", false),
        ("cuda-13-1", "-cuda-13.1", true),
    ] {
        // When a pool asks for a toolkit, and its image has one that is new enough
        ctx.apply(&pool(ctx, name, toolkit, &wanted())).await?;

        // Then the runner comes; of a missing toolchain its log warns
        let runner = ctx.idle(name, 1).await?.remove(0);
        let log = ctx.kubectl(&["logs", &runner]).await?;
        ensure!(log.contains(TOOLCHAIN) == is_warned, "{name}: {log}");
        ctx.delete(name).await?;
    }
    Ok(())
}

/// Toolkit 11.8 and no C compiler: both are said at once, GitHub hears nothing, and another image fixes it.
async fn an_image_that_lacks_much(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    ctx.apply(&pool(ctx, "old", "-cuda-11.8", &wanted()))
        .await?;
    let message = ctx
        .condition("old", "Stalled", "True", "PreflightFailed")
        .await?;
    for word in [
        "has no cc",
        "the CUDA toolkit is 11.8",
        "12.0 or newer is wanted",
        "spec.preflight.cudaToolkit",
    ] {
        ensure!(message.contains(word), "{word:?} is missing in: {message}");
    }
    ensure!(
        ctx.registrations(mark).await? == 0,
        "a runner was registered without what its jobs need"
    );
    let status = ctx.status("old").await?;
    ensure!(
        status.quarantine.is_empty(),
        "a node is blamed for an image: {:?}",
        status.quarantine
    );

    ctx.apply(&pool(ctx, "old", "-cuda-12.4", &wanted()))
        .await?;
    ctx.idle("old", 1).await?;
    ctx.condition("old", "Stalled", "False", "Progressing")
        .await?;
    ctx.delete("old").await
}

async fn an_image_without_toolkit(ctx: &Ctx) -> Result<()> {
    ctx.apply(&pool(ctx, "none", "", &json!({"cudaToolkit": "12.4"})))
        .await?;
    let message = ctx
        .condition("none", "Stalled", "True", "PreflightFailed")
        .await?;
    ensure!(
        message.contains("has no CUDA toolkit, and 12.4 is wanted"),
        "{message}"
    );
    ctx.delete("none").await
}

/// One refuses, one hangs, one has no address, one answers: the condition names the first three, each with its trouble.
async fn addresses(ctx: &Ctx) -> Result<()> {
    let machine = ctx.cluster.link.as_ref().context("no node")?.machine;
    // The system takes the connection, and nobody ever answers on it.
    let silent = TcpListener::bind((machine, 0))?;
    let hangs = format!("http://{}/", silent.local_addr()?);
    let refuses = format!("https://{machine}:1/");
    let unknown = "https://no-such-name.invalid/".to_owned();
    let names = knows_no_name(machine)?;
    let egress = json!([ctx.cluster.github, refuses, hangs, unknown]);
    let mut shut_in = pool(ctx, "shut-in", "", &json!({"egress": egress}));
    let pod = &mut shut_in["spec"]["template"]["spec"];
    pod["dnsPolicy"] = json!("None");
    pod["dnsConfig"] = json!({"nameservers": [machine]});
    ctx.apply(&shut_in).await?;
    let message = ctx
        .condition("shut-in", "Stalled", "True", "PreflightFailed")
        .await?;
    for words in [
        format!("{refuses} refuses the connection"),
        format!("{hangs} did not answer within 5 s"),
        format!("{unknown} cannot be reached: the name does not resolve"),
    ] {
        ensure!(
            message.contains(&words),
            "{words:?} is missing in: {message}"
        );
    }
    ensure!(
        !message.contains(&ctx.cluster.github),
        "an address that answers is blamed: {message}"
    );

    names.abort();

    // One that only hangs may come back by itself: nobody has to change anything
    ctx.apply(&pool(ctx, "shut-in", "", &json!({"egress": [hangs]})))
        .await?;
    ctx.wait_for("a failure that may pass", SOON, async || {
        let last = ctx
            .status("shut-in")
            .await?
            .last_failures
            .into_iter()
            .next();
        Ok(last.filter(|f| f.reason == "PreflightFailed" && f.class.as_str() == "transient"))
    })
    .await?;
    ctx.condition("shut-in", "Stalled", "False", "Progressing")
        .await?;
    ctx.delete("shut-in").await
}

/// A name server that answers every question with NXDOMAIN, <https://www.rfc-editor.org/rfc/rfc1035#section-4.1.1>.
fn knows_no_name(address: Ipv4Addr) -> Result<tokio::task::JoinHandle<()>> {
    let socket = UdpSocket::bind((address, 53)).context("no port for a name server")?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    Ok(tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            // A response, recursion available; the question is sent back as it came.
            packet[2] |= 0x80;
            packet[3] = 0x83;
            let _ = socket.send_to(&packet[..length], from).await;
        }
    }))
}
