//! What needs no cluster: format, lints, dependencies, workflows, the dashboard, the documents' words, the book, unit tests.

use std::{
    process::{Command, ExitStatus},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    book, interrupt, paths,
    process::{Identity, cargo},
    report::Story,
    tools, words,
};

/// Runs all of it; the first failure ends it.
pub fn run(story: &Story) -> Result<()> {
    stage(
        story,
        "cargo fmt --check",
        &mut cargo(&["fmt", "--all", "--check"]),
    )?;
    stage(
        story,
        "cargo clippy",
        &mut cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny=warnings",
        ]),
    )?;
    purity(story)?;
    dependencies(story)?;
    workflows(story)?;
    dashboard(story)?;
    stage(
        story,
        "cargo doc",
        cargo(&["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "--deny=warnings"),
    )?;
    story.step("the documents' words");
    words::check()?;
    story.step("the documentation as a book");
    book::build(story)?;
    stage(
        story,
        "cargo test",
        &mut cargo(&["test", "--quiet", "--workspace"]),
    )
}

/// The crate that decides cannot touch the world: it has none of what that takes, by its own dependencies or theirs.
fn purity(story: &Story) -> Result<()> {
    const DECIDES: &str = "cuda-runner-plan";
    const TOUCHES: [&str; 10] = [
        "axum",
        "hyper",
        "kube-client",
        "kube-runtime",
        "octocrab",
        "reqwest",
        "rustls",
        "tokio",
        "tower",
        "tracing",
    ];
    story.step(&format!("what {DECIDES} depends on"));
    let tree = cargo(&["tree", "-p", DECIDES, "-e", "normal", "--prefix", "none"])
        .output()
        .context("cannot start `cargo tree`")?;
    let tree = String::from_utf8_lossy(&tree.stdout);
    let crates: Vec<&str> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
    ensure!(
        crates.first() == Some(&DECIDES),
        "`cargo tree` says nothing of {DECIDES}"
    );
    let found: Vec<_> = TOUCHES
        .iter()
        .filter(|name| crates.contains(name))
        .collect();
    ensure!(
        found.is_empty(),
        "{DECIDES} depends on {found:?}: decisions are made on plain values; what touches the world belongs into the operator's own crate"
    );
    Ok(())
}

/// Licences, bans, sources, and known vulnerabilities where their database can be had.
fn dependencies(story: &Story) -> Result<()> {
    let program = tools::cargo_deny(story)?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(paths::repository());
        command
    };
    let fetched = deny(&["fetch", "db"])
        .output()
        .context("cannot start cargo-deny")?;
    if fetched.status.success() {
        return stage(
            story,
            "cargo deny check",
            &mut deny(&["--log-level=error", "check"]),
        );
    }
    let why = String::from_utf8_lossy(&fetched.stderr)
        .trim()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned();
    story.step(&format!(
        "SKIPPED: known vulnerabilities. The advisory database could not be fetched: {why}. Licences, bans and sources are checked all the same"
    ));
    stage(
        story,
        "cargo deny check bans licenses sources",
        &mut deny(&["--log-level=error", "check", "bans", "licenses", "sources"]),
    )
}

/// GitHub's workflows: what is wrong in them, and what is unsafe.
fn workflows(story: &Story) -> Result<()> {
    let mut actionlint = Command::new(tools::actionlint(story)?);
    // Without the programs that it would take where a machine has them.
    actionlint.args(["-shellcheck=", "-pyflakes="]);
    stage(
        story,
        "actionlint",
        actionlint.current_dir(paths::repository()),
    )?;
    let mut zizmor = Command::new(tools::zizmor(story)?);
    zizmor.args(["--offline", "--quiet", "--persona=auditor", ".github"]);
    stage(story, "zizmor", zizmor.current_dir(paths::repository()))
}

/// The chart's dashboard is one to Grafana.
fn dashboard(story: &Story) -> Result<()> {
    let mut python = Command::new("python3");
    python
        .args([
            "e2e/dashboard.py",
            "charts/cuda-runner-operator/files/dashboard.json",
        ])
        .env("PYTHONPATH", tools::grafana_sdk(story)?)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    stage(
        story,
        "the dashboard by Grafana's types",
        python.current_dir(paths::repository()),
    )
}

fn stage(story: &Story, name: &str, command: &mut Command) -> Result<()> {
    story.step(name);
    let start = Instant::now();
    let status = foreground(command).with_context(|| format!("cannot start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    story.measure(name, start.elapsed());
    Ok(())
}

/// Runs a program that ends with us when we are interrupted.
pub fn foreground(command: &mut Command) -> Result<ExitStatus> {
    let mut child = command.spawn()?;
    interrupt::foreground(Identity::of(child.id()));
    let status = child.wait();
    interrupt::foreground(None);
    Ok(status?)
}
