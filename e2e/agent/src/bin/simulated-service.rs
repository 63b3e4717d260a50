//! Stands in for the database that a workflow has among its `services:`. Like the images of databases it refuses to start
//! without a password. Whoever connects is told in one line what it has, such as `gpu=none password=8`: what it sees of a
//! GPU, and how many characters the password has.
//!
//! It listens on 5432, or on `PORT` of the environment. It is static, and so is all that there is in its image.

use std::{
    env, fs,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, Result, bail};
use signal_hook::{consts::SIGTERM, flag::register_conditional_shutdown};

/// The folders where a driver's library is, in images or from the node.
const LIBRARIES: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/nvidia"];

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulated-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    // The first process of a container has no default for it, and would have to be killed.
    register_conditional_shutdown(SIGTERM, 0, Arc::new(AtomicBool::new(true)))?;
    let password = env::var("POSTGRES_PASSWORD").unwrap_or_default();
    if password.is_empty() {
        bail!("POSTGRES_PASSWORD is not set: set it in the env of the service");
    }
    let port = match env::var("PORT") {
        Ok(port) => port.parse().context("PORT is no port")?,
        Err(_) => 5432,
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on port {port}"))?;
    println!("listening on {}", listener.local_addr()?);
    let answer = format!("gpu={} password={}\n", gpu(), password.chars().count());
    for stream in listener.incoming() {
        // Whoever hangs up harms nobody else.
        let _ = stream.and_then(|mut stream| stream.write_all(answer.as_bytes()));
    }
    Ok(())
}

/// What there is of a GPU: a variable, libraries, device files; `none` where there is nothing.
fn gpu() -> String {
    let mut seen = Vec::new();
    if let Ok(devices) = env::var("NVIDIA_VISIBLE_DEVICES")
        && !["", "none", "void"].contains(&devices.as_str())
    {
        seen.push(format!("NVIDIA_VISIBLE_DEVICES:{devices}"));
    }
    let library = |name: &str| name == "libcuda.so.1";
    let device = |name: &str| name.starts_with("nvidia");
    // What cannot be read is not seen.
    for folder in LIBRARIES {
        let _ = find(folder.as_ref(), &library, &mut seen);
    }
    let _ = find("/dev".as_ref(), &device, &mut seen);
    if seen.is_empty() {
        "none".to_owned()
    } else {
        seen.join(",")
    }
}

/// Adds the files below a folder that have such a name.
fn find(folder: &Path, named: &dyn Fn(&str) -> bool, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let _ = find(&entry.path(), named, found);
        } else if named(&entry.file_name().to_string_lossy()) {
            found.push(entry.path().display().to_string());
        }
    }
    Ok(())
}
