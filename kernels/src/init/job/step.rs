//! One step: its process, and what goes back and forth while it runs.

use std::io::{self, ErrorKind, PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use super::frames::{Frame, Frames, PIECE};
use super::request::Run;
use super::{Job, Place};

/// The most that a pipe holds: so much of a step's output may still be there when it has ended.
const PIPE: usize = 1024 * 1024;

/// A step that runs.
pub(super) struct Step {
    process: Pid,
    ended: PipeReader,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

/// Starts a step in a process group of its own, with nothing to read.
pub(super) fn start(job: &Job, run: &Run) -> Result<Step, String> {
    if job.gpu.is_gone() {
        return Err("The GPU has vanished from the job's container: its device file cannot be opened any more. Run the job again; the runner is replaced.".into());
    }
    let container = job
        .container
        .get()
        .ok_or("The job's container has not been prepared.")?;
    let mut command = container.command(run)?;
    let mut start = || {
        let ((stdout, of_stdout), (stderr, of_stderr)) = (io::pipe()?, io::pipe()?);
        container.give(&of_stdout)?;
        container.give(&of_stderr)?;
        command
            .stdin(Stdio::null())
            .stdout(of_stdout)
            .stderr(of_stderr)
            .process_group(0);
        let (process, ended) = job.children.start(&mut command)?;
        Ok(Step {
            process,
            ended,
            stdout: Some(stdout),
            stderr: Some(stderr),
        })
    };
    start().map_err(|error: io::Error| {
        format!(
            "{} could not be started in the job's container: {error}.",
            run.argv.first().map_or("", String::as_str)
        )
    })
}

/// Who asked for the step has gone away, or sends rubbish.
struct Gone;

/// The other end, and what it has not taken yet. Nothing is read from the step meanwhile, so a slow client makes the step
/// wait and costs no memory.
struct Client {
    stream: UnixStream,
    frames: Frames,
    owed: Vec<u8>,
}

impl Step {
    /// Passes everything on until the step has ended. A client that goes away ends it.
    pub(super) fn follow(mut self, job: &Job, stream: UnixStream, frames: Frames, place: Place) {
        let mut client = Client {
            stream,
            frames,
            owed: vec![],
        };
        let nonblocking = client.stream.set_nonblocking(true).map_err(|_| Gone);
        if nonblocking
            .and_then(|()| self.pass_on(job, &mut client))
            .is_err()
        {
            job.children.signal(self.process, libc::SIGKILL);
        }
        drop(client);
        drop(place);
        // A process that the step left behind may go on printing: without a reader, that would end it.
        while self.stdout.is_some() || self.stderr.is_some() {
            let [_, _, stdout, stderr] = self.wait(None);
            stdout.then(|| read(&mut self.stdout));
            stderr.then(|| read(&mut self.stderr));
        }
    }

    fn pass_on(&mut self, job: &Job, client: &mut Client) -> Result<(), Gone> {
        loop {
            for signal in client.signals()? {
                job.children.signal(self.process, signal.into());
            }
            let [of_the_client, ended, stdout, stderr] = self.wait(Some(client));
            if of_the_client {
                client.read()?;
                client.write()?;
            }
            if stdout {
                client.owe(&Frame::Stdout(read(&mut self.stdout)));
            }
            if stderr {
                client.owe(&Frame::Stderr(read(&mut self.stderr)));
            }
            if ended {
                break;
            }
        }
        // What the step left in its pipes comes before its code. Others may write there for ever.
        client.take(&mut self.stdout, Frame::Stdout)?;
        client.take(&mut self.stderr, Frame::Stderr)?;
        let mut code = [0];
        client.owe(&match self.ended.read_exact(&mut code) {
            Ok(()) => Frame::Exit(code[0]),
            Err(error) => Frame::Failed(format!("The step's exit code was lost: {error}.")),
        });
        client.hand_over()
    }

    /// Waits until something can be done: for the client, after the step's end, with its output. Without a client only its
    /// output is waited for.
    fn wait(&self, client: Option<&Client>) -> [bool; 4] {
        let owes = client.is_some_and(|client| !client.owed.is_empty());
        let fds = [
            client.map(|client| (client.stream.as_fd(), client.interest())),
            client.map(|_| (self.ended.as_fd(), PollFlags::IN)),
            self.stdout.as_ref().filter(|_| !owes).map(readable),
            self.stderr.as_ref().filter(|_| !owes).map(readable),
        ];
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        if poll(&mut polled, None).is_err() {
            return [false; 4];
        }
        let mut polled = polled.iter();
        fds.map(|fd| fd.is_some() && polled.next().is_some_and(|fd| !fd.revents().is_empty()))
    }
}

impl Client {
    fn interest(&self) -> PollFlags {
        if self.owed.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        }
    }

    fn owe(&mut self, frame: &Frame) {
        self.owed.extend(frame.bytes());
    }

    /// The signals that have come. Nothing else has a sense after the request.
    fn signals(&mut self) -> Result<Vec<u8>, Gone> {
        let mut signals = vec![];
        while let Some(frame) = self.frames.take().map_err(|_| Gone)? {
            match frame {
                Frame::Signal(signal) => signals.push(signal),
                _ => return Err(Gone),
            }
        }
        Ok(signals)
    }

    fn read(&mut self) -> Result<(), Gone> {
        let mut piece = [0; 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(Gone),
            Ok(count) => {
                self.frames.add(&piece[..count]);
                Ok(())
            }
            Err(error) if is_nothing(&error) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    fn write(&mut self) -> Result<(), Gone> {
        if self.owed.is_empty() {
            return Ok(());
        }
        match self.stream.write(&self.owed) {
            Ok(count) => {
                self.owed.drain(..count);
                Ok(())
            }
            Err(error) if is_nothing(&error) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// Waits until the client has taken everything.
    fn hand_over(&mut self) -> Result<(), Gone> {
        while !self.owed.is_empty() {
            let mut polled = [PollFd::from_borrowed_fd(
                self.stream.as_fd(),
                self.interest(),
            )];
            if poll(&mut polled, None).is_ok() {
                self.read()?;
                // The step has ended: a signal for it comes too late.
                self.signals()?;
                self.write()?;
            }
        }
        Ok(())
    }

    /// What is in a pipe now.
    fn take(
        &mut self,
        pipe: &mut Option<PipeReader>,
        frame: fn(Vec<u8>) -> Frame,
    ) -> Result<(), Gone> {
        let mut left = PIPE;
        while left > 0 && pipe.as_ref().is_some_and(has_something) {
            self.hand_over()?;
            let bytes = read(pipe);
            left = left.saturating_sub(bytes.len());
            self.owe(&frame(bytes));
        }
        self.hand_over()
    }
}

fn readable(pipe: &PipeReader) -> (BorrowedFd<'_>, PollFlags) {
    (pipe.as_fd(), PollFlags::IN)
}

fn has_something(pipe: &PipeReader) -> bool {
    let (fd, flags) = readable(pipe);
    let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// A piece of output; at the end of it, nothing, and the pipe is closed.
fn read(pipe: &mut Option<PipeReader>) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    let count = pipe.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut bytes));
    bytes.truncate(*count.as_ref().unwrap_or(&0));
    if bytes.is_empty() && !count.is_err_and(|error| is_nothing(&error)) {
        *pipe = None;
    }
    bytes
}

/// Nothing can be done now.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
