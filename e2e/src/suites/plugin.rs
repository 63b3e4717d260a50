//! `kubectl cudarunner`, as people call it.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Ctx;
use crate::images::{Profile, artifact};

/// What the plugin prints, once it has ended with this exit code.
pub(super) async fn plugin(ctx: &Ctx, code: i32, args: &[&str]) -> Result<String> {
    let mut command = Command::new(artifact(Profile::Dev, "kubectl-cudarunner"));
    command
        .env("KUBECONFIG", ctx.cluster.kubeconfig())
        .args(args)
        .args(["--namespace", &ctx.namespace])
        .stdin(Stdio::null());
    let done = tokio::task::spawn_blocking(move || command.output())
        .await?
        .context("the plugin does not start")?;
    let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&done.stderr));
    ensure!(
        done.status.code() == Some(code),
        "`kubectl cudarunner {}` ended with {}, not {code}:\n{text}",
        args.join(" "),
        done.status
    );
    Ok(text)
}
