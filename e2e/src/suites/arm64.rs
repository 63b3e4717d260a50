//! For arm64: the programs of all images and the plugin are built. The gate passes tests on the simulated driver under
//! emulation: the whole of it on GPUs of each kind, among them GH200, GB200 and GB10. Emulation is slow, so tests with deadlines
//! of seconds are left out, of the operator and the plugin it is shown that they start, and the suite is run by its name alone.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Ctx;
use crate::{check::foreground, process::output, report::Story, tools::Cross};

/// What is tested: each a package and its tests.
const TESTS: [&[&str]; 2] = [
    &["--package=cuda-smoke", "--lib", "--bins", "--test=allow"],
    &["--package=cuda-smoke", "--test=devices", "--", "the_report"],
];

/// The operator's programs, which start under emulation.
const OPERATORS: [&str; 2] = ["cuda-runner-operator", "kubectl-cudarunner"];

/// The ELF machine, in readelf's words.
const MACHINE: &str = "AArch64";

pub(super) async fn run(_: &Ctx) -> Result<()> {
    tokio::task::spawn_blocking(emulated).await?
}

fn emulated() -> Result<()> {
    let cross = Cross::ensure(&Story::silent())?;
    for tests in TESTS {
        // Given the programs and their tests, for arm64; when they run under emulation, then they pass
        let mut run = cross.emulated(&["test", "--quiet", "--locked"]);
        well(run.args(tests), &format!("for arm64: {}", tests.join(" ")))?;
    }
    // And the operator and the plugin start there
    for program in OPERATORS {
        let run = [
            "run",
            "--quiet",
            "--locked",
            "--package=cuda-runner-operator",
        ];
        let mut run = cross.emulated(&run);
        run.args(["--bin", program, "--", "--version"]);
        let said = output(&mut run).with_context(|| format!("{program} for arm64"))?;
        let version = env!("CARGO_PKG_VERSION");
        ensure!(said.contains(version), "{program} for arm64 says {said}");
    }
    // And what goes into the images is for that machine; what goes into foreign ones needs nothing of them
    let name = "runner-init";
    let mut build = cross.cargo(&["rustc", "--quiet", "--package=cuda-smoke", "--bin", name]);
    build.args(["--", "-C", "target-feature=+crt-static"]);
    well(&mut build, "the static program for arm64")?;
    let dynamic = OPERATORS.into_iter().chain(["cuda-smoke"]);
    let programs = dynamic.map(|program| (program, false));
    for (program, is_static) in programs.chain([(name, true)]) {
        let mut readelf = Command::new("readelf");
        readelf.args(["--wide", "--file-header", "--program-headers"]);
        let headers = output(readelf.arg(cross.artifact(program)))?;
        ensure!(headers.contains(MACHINE), "{program} is for {headers}");
        ensure!(
            headers.contains("INTERP") != is_static,
            "{program} is static: {}, {headers}",
            !is_static
        );
    }
    Ok(())
}

fn well(command: &mut Command, what: &str) -> Result<()> {
    let status = foreground(command).with_context(|| format!("cannot start {what}"))?;
    ensure!(status.success(), "{what} failed ({status}), as told above");
    Ok(())
}

/// Why it cannot be run here, where it cannot.
pub(super) fn lacks() -> Option<String> {
    let error = Cross::ensure(&Story::silent()).err()?;
    Some(format!("{error:#}"))
}
