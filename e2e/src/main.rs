//! `cargo e2e`: a local cluster with simulated GPUs and a simulated GitHub, the demo, and the suites.

mod certs;
mod cluster;
mod control_plane;
mod device_plugin;
mod helm;
mod images;
mod kwok;
mod network;
mod node;
mod paths;
mod process;
mod report;
mod supervisor;
mod tools;
mod wait;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    cluster::{Cluster, Options},
    images::Profile,
    report::Story,
};

#[derive(Debug, Parser)]
#[command(name = "cargo e2e", about, disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster, install the operator and print how to use it.
    Up {
        /// Name of the cluster; several may run side by side.
        #[arg(long, default_value = "local")]
        name: String,
        /// Simulated GPU nodes beside the real one.
        #[arg(long, default_value_t = 0)]
        kwok_nodes: usize,
        /// Build the images' binaries as they are published. Slow to build, otherwise the same.
        #[arg(long)]
        release: bool,
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
    DevicePlugin {
        #[arg(long)]
        devices: PathBuf,
        #[arg(long)]
        driver: PathBuf,
        #[arg(long, default_value = "nvidia.com/gpu")]
        resource: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
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
        Command::Up {
            name,
            kwok_nodes,
            release,
        } => {
            let profile = if release {
                Profile::Release
            } else {
                Profile::Dev
            };
            let options = Options {
                kwok_nodes,
                profile,
                owned: false,
                ..Options::default()
            };
            let cluster = runtime.block_on(Cluster::up(&name, options, &Story::new()))?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
        }
        Command::Down { name, all } => {
            for orphan in cluster::remove_orphans()? {
                println!("removed what a killed run had left: {orphan}");
            }
            let names = if all { cluster::names()? } else { vec![name] };
            for name in names {
                cluster::remove(&paths::cluster(&name)?)?;
            }
        }
        Command::DevicePlugin {
            devices,
            driver,
            resource,
        } => {
            let config = device_plugin::Config {
                devices,
                driver,
                resource,
            };
            runtime.block_on(device_plugin::run(config))?;
        }
        Command::Supervise { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}
