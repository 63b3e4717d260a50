//! The command line of `cargo e2e`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use e2e::{
    bench, book, check,
    cluster::{Cluster, Options},
    demo, deploy, device_plugin, dra_plugin, example, faults,
    helm::{NAMESPACE, RELEASE},
    images::Profile,
    interrupt, on_path, paths, process, removal,
    report::Story,
    simulator, suites, supervisor,
    tools::KUBERNETES,
};
use tokio::runtime::Runtime;

/// The local cluster, the demo, the tests and the benchmarks.
#[derive(Debug, Parser)]
#[command(name = "cargo e2e", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell the story of one pool: from nothing to finished GPU jobs, and back.
    Demo {
        #[command(flatten)]
        build: Build,
        /// Also write the story and its times as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Test everything: format, lints, dependencies, workflows, the dashboard, the book, unit tests, the suites on two
    /// clusters, and a sample of the faults.
    Test {
        /// Only this suite; may be given more than once.
        #[arg(long = "suite", value_name = "NAME")]
        suites: Vec<String>,
        #[command(flatten)]
        on: On,
        /// Only say which suites there are.
        #[arg(long)]
        list: bool,
    },
    /// Test what needs no cluster: format, lints, dependencies, workflows, the dashboard, the book, unit tests.
    Check,
    /// Measure: each figure beside the least that it could be. A figure that misses its budget is no error.
    Bench {
        /// Also write the figures as JSON, with every sample.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often to measure.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
        runs: u8,
        /// Only this row; may be given more than once.
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Only say which rows there are.
        #[arg(long)]
        list: bool,
    },
    /// Let every request of a pool's life meet every fault: a sample in the time given, or all.
    Faults(faults::Run),
    /// Build the documentation as a book; a link that leads nowhere is an error.
    Book,
    /// Start a cluster, install the operator and say how to use both.
    Up {
        #[command(flatten)]
        build: Build,
        /// Name of the cluster; several may run side by side.
        #[arg(long, default_value = "local")]
        name: String,
        /// Simulated GPU nodes beside the real one.
        #[arg(long, default_value_t = 0)]
        kwok_nodes: usize,
    },
    /// Take a cluster down, and whatever killed runs have left.
    Down {
        /// Name of the cluster.
        #[arg(long, default_value = "local")]
        name: String,
        /// Every cluster of this user.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// The parent of a cluster's processes.
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        sandbox: bool,
    },
    /// The kubelet's plugin for simulated GPUs.
    #[command(hide = true)]
    DevicePlugin(device_plugin::Config),
    /// The kubelet's plugin of dynamic resource allocation for simulated GPUs.
    #[command(hide = true)]
    DraPlugin(dra_plugin::Config),
    /// The simulated GitHub.
    #[command(hide = true)]
    GithubSimulator(simulator::Arguments),
}

#[derive(Clone, Copy, Debug, Args)]
struct Build {
    /// Build the images' binaries as they are published. Slow to build, otherwise the same.
    #[arg(long)]
    release: bool,
}

impl Build {
    fn options(self) -> Options {
        let profile = if self.release {
            Profile::Release
        } else {
            Profile::Dev
        };
        Options {
            profile,
            ..Options::default()
        }
    }
}

#[derive(Debug, Args)]
struct On {
    #[command(flatten)]
    build: Build,
    /// On this version of Kubernetes; for suites by name.
    #[arg(long, value_name = "VERSION", value_parser = KUBERNETES, default_value = KUBERNETES[0], requires = "suites")]
    kubernetes: String,
}

impl On {
    fn options(&self) -> Options {
        let mut known = KUBERNETES.into_iter();
        let known = known.find(|known| *known == self.kubernetes);
        Options {
            kubernetes: known.unwrap_or(KUBERNETES[0]),
            ..self.build.options()
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    // The first process of a namespace waits for all children, so it has no runtime that does.
    if let Command::Supervise { dir, sandbox } = &command {
        return supervisor::run(dir, *sandbox).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match command {
        Command::Demo { build, json } => return tell(&runtime, build, json.as_deref()),
        Command::Test { list: true, .. } => print!("{}", suites::list()),
        Command::Test { on, suites, .. } => return test(&runtime, on.options(), &suites),
        Command::Check => check::run(&Story::default())?,
        Command::Bench { list: true, .. } => print!("{}", bench::list()),
        // A slow client would be an easy floor.
        Command::Bench { .. } if cfg!(debug_assertions) => return optimised(),
        Command::Bench {
            json, runs, only, ..
        } => {
            let run = bench::Run {
                runs: runs.into(),
                story: Story::default(),
            };
            runtime.block_on(async {
                interrupt::watch()?;
                bench::run(&run, &only, json.as_deref()).await
            })?;
        }
        // Half of its time would go into code of ours that is not optimised. A few cases are not worth the build.
        Command::Faults(faults) if faults.all && cfg!(debug_assertions) => return optimised(),
        Command::Faults(faults) => runtime.block_on(async {
            interrupt::watch()?;
            faults::run(&faults, &Story::default()).await
        })?,
        Command::Book => println!("{}", book::build(&Story::default())?.display()),
        Command::Up {
            build,
            name,
            kwok_nodes,
        } => {
            let options = Options {
                kwok_nodes,
                ..build.options()
            };
            runtime.block_on(up(&name, options))?;
        }
        Command::Down { name, all } => down(&name, all)?,
        Command::DevicePlugin(config) => runtime.block_on(device_plugin::run(config))?,
        Command::DraPlugin(config) => runtime.block_on(dra_plugin::run(config))?,
        Command::GithubSimulator(arguments) => runtime.block_on(simulator::run(arguments))?,
        Command::Supervise { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds this program with optimisation, and runs it with the same arguments.
fn optimised() -> Result<ExitCode> {
    let mut cargo = process::cargo(&["run", "--quiet", "--profile=measure", "--package=e2e", "--"]);
    cargo.args(std::env::args_os().skip(1));
    let status = check::foreground(&mut cargo).context("cannot start cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(runtime: &Runtime, build: Build, json: Option<&Path>) -> Result<ExitCode> {
    let story = Story::default();
    runtime.block_on(async {
        interrupt::watch()?;
        demo::run(build.options(), &story).await
    })?;
    if let Some(file) = json {
        story.write(file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Named suites are run without the checks and the faults; without a name everything is.
fn test(runtime: &Runtime, options: Options, names: &[String]) -> Result<ExitCode> {
    let story = Story::default();
    runtime.block_on(async { interrupt::watch() })?;
    if names.is_empty() {
        check::run(&story)?;
    }
    let conclusion = suites::run(runtime.handle(), names, options, &story)?;
    if names.is_empty() && !conclusion.has_failed() {
        // Alone on the machine, when no suite's cluster runs any more.
        story.step("a sample of the faults");
        runtime.block_on(faults::run(&faults::Run::sample(), &story))?;
    }
    story.step("done");
    Ok(conclusion.exit_code())
}

async fn up(name: &str, options: Options) -> Result<()> {
    interrupt::watch()?;
    let story = Story::default();
    let cluster = Cluster::up(name, options, &story).await?;
    let furnished = async {
        deploy::install(&cluster, options.profile, &["fleetPage.enabled=true"]).await?;
        let client = cluster.client().await?;
        let github = simulator::client(&cluster.dir, &cluster.github)?;
        example::prepare(&cluster, &client, &github).await
    };
    let example = match furnished.await {
        Ok(example) => example,
        Err(error) => {
            let error = deploy::failed(&cluster, error).await;
            cluster.down()?;
            return Err(error);
        }
    };
    cluster.keep()?;
    story.step("operator installed");
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!(
        "export PATH={}:$PATH",
        on_path::folder(&cluster, options.profile)?.display()
    );
    println!("kubectl apply --filename {}", example.display());
    println!("kubectl --namespace ci get cudarunners,pods --watch");
    println!("kubectl cudarunner status --namespace ci");
    println!("# The fleet page, at http://localhost:8082:");
    println!("kubectl --namespace {NAMESPACE} port-forward service/{RELEASE}-fleet 8082");
    println!("# Queue a job for it:");
    println!(
        "curl --cacert {} {}/_sim/jobs --json '{}'",
        simulator::authority_path(&cluster.dir).display(),
        cluster.github,
        serde_json::json!({
            "repository": simulator::REPOSITORY, "name": "hello", "labels": ["self-hosted", "cuda"],
            "steps": [{"name": "hello", "run": "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check"}],
        })
    );
    println!(
        "# The GPUs, a file for each: {}",
        cluster.devices().display()
    );
    println!("# What to try with all that: docs/guides/playground.md");
    println!("# The end of it: cargo e2e down --name {name}");
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    for orphan in removal::remove_orphans()? {
        println!("removed what a killed run had left: {orphan}");
    }
    let names = if all {
        removal::names()?
    } else {
        vec![name.to_owned()]
    };
    for name in names {
        removal::remove(&paths::cluster(&name)?)?;
    }
    Ok(())
}
