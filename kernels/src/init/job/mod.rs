//! The job's container: this program is the first process in the job's own image and runs the steps that the agent's hook
//! sends it from the main container, over a socket in the folder that both have.
//!
//! The job's own code can connect as well, and may send what it likes: connections, their time and their memory are
//! bounded, and where process namespaces tell who is who, nobody inside is listened to. A socket that closes before a
//! step's exit code is an error to the hook, never a success.

mod children;
mod container;
pub(crate) mod frames;
pub(crate) mod request;
mod step;

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use cuda_smoke::files;
use gate_report::contract::file;
use gate_report::exit;

use self::children::Children;
use self::container::Container;
use self::frames::{Frame, Frames};
use self::request::{Begin, Begun, Request};
use crate::process::{self, Signals};

/// Connections at one time. The agent runs one step at a time.
const PLACES: usize = 16;
/// How long a client may take to say what it wants, and to take a short answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A pause where the system has no more files or threads for us.
const PAUSE: Duration = Duration::from_millis(20);
/// Enough for what a connection does.
const STACK: usize = 256 * 1024;

/// What all connections share.
struct Job {
    children: Children,
    /// Set by the first request.
    container: OnceLock<Container>,
    gpu: container::Gpu,
    /// The container's first process was killed while the job ran: nothing runs here any more.
    cut_off: bool,
}

impl Job {
    fn begin(&self, begin: Begin) -> Result<Begun, String> {
        let again = || "The job's container has been prepared already.".to_owned();
        if self.container.get().is_some() {
            return Err(again());
        }
        let (container, answer) = Container::begin(begin)?;
        self.container.set(container).map_err(|_| again())?;
        Ok(answer)
    }
}

/// A connection's place among those that there may be.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::AcqRel) < PLACES).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves until SIGTERM, and returns the container's exit code.
pub(crate) fn serve(dir: &Path, signals: &mut Signals, cut_off: bool) -> u8 {
    let socket = dir.join(file::JOB_SOCKET);
    let listener = match files::listen(&socket) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("{} could not be listened at: {error}", socket.display());
            return exit::INTERNAL;
        }
    };
    let job = Arc::new(Job {
        children: Children::default(),
        container: OnceLock::new(),
        gpu: container::Gpu::look(),
        cut_off,
    });
    let shared = Arc::clone(&job);
    thread::spawn(move || accept(&listener, &shared));
    signals.wait_with(|| job.children.reap());
    // The main container has ended, or the pod is being deleted: no step has anybody to be told of.
    job.children.kill();
    exit::PASSED
}

fn accept(listener: &UnixListener, job: &Arc<Job>) {
    let taken = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(PAUSE);
            continue;
        };
        if is_from_inside(&stream) {
            continue;
        }
        let Some(place) = Place::take(&taken) else {
            refuse(stream);
            continue;
        };
        let job = Arc::clone(job);
        let talk = move || talk(stream, &job, place);
        // What it has taken goes with it where no thread can be made.
        if thread::Builder::new()
            .stack_size(STACK)
            .spawn(talk)
            .is_err()
        {
            thread::sleep(PAUSE);
        }
    }
}

/// Whether the client is a process of this very container. Seen from the first process of a namespace, who is outside
/// has no number.
fn is_from_inside(stream: &UnixStream) -> bool {
    process::is_first() && peer(stream) != Some(0)
}

fn peer(stream: &UnixStream) -> Option<libc::pid_t> {
    let mut peer = libc::ucred {
        pid: -1,
        uid: 0,
        gid: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes to `peer`, which has so many.
    let code = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    (code == 0).then_some(peer.pid)
}

/// Nobody waits for who does not listen.
fn refuse(mut stream: UnixStream) {
    let answer = Frame::Failed("The job's container has too many connections.".into()).bytes();
    if stream.set_nonblocking(true).is_ok() {
        let _ = stream.write(&answer);
    }
}

/// One connection.
fn talk(mut stream: UnixStream, job: &Job, place: Place) {
    let Some((request, frames)) = asked(&mut stream) else {
        return answer(
            &mut stream,
            &Frame::Failed("The request was not understood.".into()),
        );
    };
    let frame = match request {
        _ if job.cut_off => Frame::Failed(
            "The job's container was restarted while the job ran: its first process was killed. Look for OOMKilled in the pod's status; the job needs more memory then."
                .into(),
        ),
        Request::Begin(begin) => match job.begin(*begin) {
            Ok(answer) => Frame::Done(serde_json::to_vec(&answer).unwrap_or_default()),
            Err(sentence) => Frame::Failed(sentence),
        },
        Request::Clean => {
            job.children.kill();
            process::kill_all_others();
            Frame::Done(b"{}".to_vec())
        }
        Request::Run(run) => match step::start(job, &run) {
            Ok(step) => return step.follow(job, stream, frames, place),
            Err(sentence) => Frame::Failed(sentence),
        },
    };
    answer(&mut stream, &frame);
}

/// The request, and what came behind it.
fn asked(stream: &mut UnixStream) -> Option<(Request, Frames)> {
    let deadline = Instant::now() + PATIENCE;
    let (mut frames, mut piece) = (Frames::default(), [0; 16 * 1024]);
    loop {
        match frames.take() {
            Ok(Some(Frame::Request(json))) => {
                return Some((serde_json::from_slice(&json).ok()?, frames));
            }
            Ok(None) => {}
            _ => return None,
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        stream.set_read_timeout(Some(left.max(PAUSE))).ok()?;
        let count = match stream.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.ok().filter(|count| *count > 0)?,
        };
        frames.add(&piece[..count]);
    }
}

/// A short answer. Who has gone away needs none.
fn answer(stream: &mut UnixStream, frame: &Frame) {
    if stream.set_write_timeout(Some(PATIENCE)).is_ok() {
        let _ = stream.write_all(&frame.bytes());
    }
}
