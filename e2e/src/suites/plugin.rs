//! `kubectl cudarunner`, as people call it, and as the documentation shows it.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use super::Ctx;
use crate::{
    images::{Profile, artifact},
    paths,
};

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

/// Whether this page of `docs` shows the screen. Names, numbers and times differ from run to run, and with the length of
/// names the lines do.
pub(super) fn shown_in(ctx: &Ctx, page: &str, pool: &str, screen: &str) -> Result<()> {
    let text = fs::read_to_string(paths::repository().join("docs").join(page))?;
    let here = screen
        .replace(
            &format!("{}/{}", ctx.cluster.github, ctx.repository),
            "https://github.com/acme/widgets",
        )
        .replace(&format!("--namespace {}", ctx.namespace), "--namespace ci")
        .replace(&format!("{}/", ctx.namespace), "ci/");
    let here = Regex::new(&format!(r"\b{pool}\b"))?.replace_all(&here, "pool");
    let wanted = without_particulars(&here)?;
    let blocks = text.split("```text\n").skip(1);
    for block in blocks.filter_map(|rest| rest.split("```").next()) {
        if without_particulars(block)? == wanted {
            return Ok(());
        }
    }
    anyhow::bail!("docs/{page} does not show:\n{here}")
}

fn without_particulars(screen: &str) -> Result<String> {
    let mut text = screen.to_owned();
    for (pattern, general) in [
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z|\d\d:\d\dZ", "TIME"),
        (r"\bmy-pool\b", "pool"),
        // Its end may look like an amount.
        (r"\bpool-[a-z0-9]{5}\b", "RUNNER"),
        (r"\b\d+(\.\d+)? ?(ms|s|seconds?|m|h|GiB/s|MiB)\b", "AMOUNT"),
        (r"\bruns?[ /]\d+", "RUN"),
        (r"GPU-[0-9a-f-]+", "DEVICE"),
        // Where the kubelet has started the container again before it saw the end of the pod.
        (r" --previous\b", ""),
        (r"\s+", " "),
    ] {
        text = Regex::new(pattern)?
            .replace_all(&text, general)
            .into_owned();
    }
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_particulars_may_differ() {
        let general = |text: &str| without_particulars(text).unwrap();
        assert_eq!(
            general("ci/my-pool-b7n3q on\n  gpu-node, 8m ago"),
            general("ci/pool-x4c6v on gpu-node, 12s ago")
        );
        let log = "kubectl logs pool-x4c6v --container gpu";
        assert_eq!(general(&format!("{log} --previous")), general(log));
        // Not an amount, though it ends as one
        assert_eq!(general("pool-4372s"), general("pool-x4c6v"));
        assert_ne!(general("FAILED: device"), general("FAILED: node"));
    }
}
