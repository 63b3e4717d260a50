//! What the GPUs did during a job: the sampler is started beside the agent, or beside a job's steps, and asked when the job is
//! over. What it says goes to the job's own page and into a mark for the operator.
//!
//! The sampler is the job's own user's, and so is the folder with its socket: nothing of this is believed, all of it is
//! bounded, and none of it can fail a job.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cuda_smoke::files::{self, READABLE};
use gate_report::contract::{REGISTRATION_DIR, file, gate};
use gate_report::usage::{GpuUsage, MOST_GPUS, command_data, markdown};
use gate_report::{SUMMARY_LIMIT, exit};

use crate::gpu::{self, Settings};

/// How long the sampler is waited for. It answers within half of that, whatever the driver does.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer.
const LONGEST: u64 = 64 * 1024;
/// What the job's log says where the image is too old for the sampler.
const NOT_STARTED: &str = "What the GPUs did during this job is not known: the program that watches them did not start in this image. It needs glibc 2.34 or newer.";
/// Bytes of the termination message that are left for marks of others.
const RESERVED: usize = 256;

/// Starts the sampler, where it was brought. An image in which it cannot run goes without.
pub(crate) fn start(dir: &Path, settings: &Settings, now: bool) {
    let program = dir.join(file::SAMPLER);
    if !program.exists() {
        return;
    }
    let of_the_device = gate::OF_THE_DEVICE
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let told = [gate::SHARED, "LD_LIBRARY_PATH"]
        .into_iter()
        .filter_map(|name| Some((name, settings.get(name)?)));
    let mut sampler = Command::new(program);
    sampler
        .arg("sample")
        .arg("--dir")
        .arg(dir)
        .args(now.then_some("--now"))
        .env_clear()
        .envs(of_the_device)
        .envs(told)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Who is not there is not waited for. It is reaped with all others.
    let _ = sampler.spawn();
}

/// After a job: tells what its GPUs did, where that is known. No error is one of the job's.
pub(crate) fn tell(dir: &Path) -> u8 {
    let settings = gpu::settings(dir).unwrap_or_default();
    let gpus = kept(dir).unwrap_or_else(|| ask(&settings));
    if gpus.is_empty() {
        if did_not_start(&settings) {
            // Without a reader nobody misses it.
            let _ = writeln!(io::stdout(), "{NOT_STARTED}");
        }
        return exit::PASSED;
    }
    let mut summary = String::from("### GPU\n\n");
    for gpu in &gpus {
        let level = if gpu.is_warning() {
            "warning"
        } else {
            "notice"
        };
        let said = command_data(&gpu.sentence(false));
        // Without a reader there are the summary and the mark.
        let _ = writeln!(io::stdout(), "::{level} title=GPU::{said}");
        summary.push_str("- ");
        summary.push_str(&markdown(&gpu.sentence(true)));
        summary.push('\n');
    }
    summary.push('\n');
    if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY") {
        // The page has the annotations, and the operator the mark.
        let _ = append(Path::new(&path), &summary);
    }
    let log = gpu::termination_log(&settings);
    let _ = append(log, &marks(&gpus, log));
    exit::PASSED
}

/// Before the job's container is cleaned, and the sampler with it: keeps what it says, in the agent's own folder.
pub(crate) fn keep(dir: &Path, settings: &Settings) {
    let gpus = ask(settings);
    if !gpus.is_empty()
        && let Ok(json) = serde_json::to_vec(&gpus)
    {
        // Without it nothing is told.
        let _ = files::write(&dir.join(file::USAGE), &json, READABLE);
    }
}

/// What was kept, once.
fn kept(dir: &Path) -> Option<Vec<GpuUsage>> {
    let path = dir.join(file::USAGE);
    let json = files::read(&path, LONGEST).ok()?;
    // A persistent runner's next job has its own.
    let _ = files::forget(&path);
    understood(&json)
}

/// The folder of the container with the GPUs.
fn shared(settings: &Settings) -> &Path {
    let shared = settings.get(gate::REGISTRATION_DIR);
    Path::new(shared.map_or(REGISTRATION_DIR, String::as_str))
}

/// Whether the sampler was brought and never listened. One that has ended leaves its socket.
fn did_not_start(settings: &Settings) -> bool {
    let shared = shared(settings);
    shared.join(file::SAMPLER).exists() && !shared.join(file::SAMPLER_SOCKET).exists()
}

/// What the sampler says; nothing where there is none.
fn ask(settings: &Settings) -> Vec<GpuUsage> {
    let socket = shared(settings).join(file::SAMPLER_SOCKET);
    let (sender, answer) = mpsc::channel();
    // On a thread of its own: even to connect can take for ever.
    thread::spawn(move || sender.send(answer_of(&socket)));
    let answer = answer.recv_timeout(PATIENCE).ok();
    let answer = answer.and_then(Result::ok);
    answer
        .and_then(|json| understood(&json))
        .unwrap_or_default()
}

fn answer_of(socket: &PathBuf) -> io::Result<Vec<u8>> {
    let mut json = vec![];
    UnixStream::connect(socket)?
        .take(LONGEST)
        .read_to_end(&mut json)?;
    Ok(json)
}

fn understood(json: &[u8]) -> Option<Vec<GpuUsage>> {
    let gpus: Vec<GpuUsage> = serde_json::from_slice(json).ok()?;
    let gpus = gpus.into_iter().take(MOST_GPUS);
    Some(gpus.map(GpuUsage::bounded).collect())
}

/// As many as the termination message has room for.
fn marks(gpus: &[GpuUsage], log: &Path) -> String {
    let taken = std::fs::metadata(log).map_or(0, |log| log.len());
    let taken = usize::try_from(taken).unwrap_or(usize::MAX);
    let mut room = SUMMARY_LIMIT.saturating_sub(RESERVED).saturating_sub(taken);
    let lines = gpus.iter().map(|gpu| gpu.mark() + "\n");
    lines
        .take_while(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        })
        .collect()
}

/// A job can put something else where a file belongs: that is not waited for.
fn append(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)?
        .write_all(text.as_bytes())
}
