//! `run.sh`: a session, jobs one after the other, and what signals do.

use std::{
    path::Path,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    cli::Run,
    code,
    job::{self, Conclusion},
    server::{Answered, Job, Message, Refusal, Server},
    settings, signals, terminal,
    worker::{self, End, Worker},
};

/// What the main thread waits for.
#[derive(Debug)]
enum Event {
    Signal,
    Message(Result<Answered<Option<Message>>>),
    JobEnded(Conclusion),
}

/// What to do next.
enum Next {
    Listen,
    Exit(u8),
}

/// So long an agent waits for a session that another one holds.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(30);

/// Runs until there is a reason to end; gives the real agent's exit code.
pub(crate) fn run(root: &Path, options: &Run) -> Result<u8> {
    terminal::open_log(root, "Runner")?;
    if let Some(startup) = &options.startuptype {
        terminal::trace(
            "INFO",
            "Runner",
            &format!("Set runner startup type - {startup}"),
        );
    }
    if let Some(encoded) = &options.jitconfig {
        for (path, size) in settings::save_jit(root, encoded)? {
            let saved = format!("Saved {size} bytes to '{}'.", path.display());
            terminal::trace("INFO", "Runner", &saved);
        }
    }
    if !settings::present(root) {
        terminal::error("Not configured. Run config.(sh/cmd) to configure the runner.");
        return Ok(code::TERMINATED);
    }
    let (settings, secret) = settings::load(root)?;
    let server = Server::new(&settings.server_url, &secret)?;
    let (sender, events) = mpsc::channel();
    let (signal_sender, signal) = mpsc::channel();
    signals::watch(signal_sender, ())?;

    let session = match connect(&server, &signal) {
        Ok(session) => session,
        Err(code) => return Ok(code),
    };
    forward(signal, sender.clone());
    terminal::line("");
    terminal::line("√ Connected to GitHub");
    terminal::line("");
    terminal::line(&format!(
        "Current runner version: '{}'",
        settings::version()
    ));
    terminal::event("Listening for Jobs");
    let code = listen(Listener {
        root,
        server: &server,
        broker: server.clone(),
        session: &session,
        once: options.once || settings.ephemeral(),
        sender,
        events,
    });
    server.close(&session);
    if code == code::SUCCESS && settings.ephemeral() && !server_knows(&server) {
        terminal::trace(
            "INFO",
            "Runner",
            "Deleting the configuration of the ephemeral runner.",
        );
        settings::delete(root);
    }
    Ok(code)
}

/// From here on signals come in order with everything else.
fn forward(signal: Receiver<()>, events: Sender<Event>) {
    thread::spawn(move || {
        while signal.recv().is_ok() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    });
}

/// An ephemeral entry that did its job is gone; one that was only stopped is not.
fn server_knows(server: &Server) -> bool {
    !matches!(server.message("none"), Ok(Err(Refusal { kind, .. })) if kind == "runnerNotFound")
}

/// Opens a session, trying for as long as it makes sense.
fn connect(server: &Server, signal: &Receiver<()>) -> Result<String, u8> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(200);
    loop {
        match server.open(&settings::version()) {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(refusal)) => {
                terminal::error(&refusal.message);
                match refusal.kind.as_str() {
                    "versionDeprecated" => return Err(code::VERSION_DEPRECATED),
                    "sessionConflict" if begin.elapsed() >= patience() => {
                        terminal::error("Stop retry on SessionConflictException.");
                        return Err(code::SESSION_CONFLICT);
                    }
                    "sessionConflict" => {}
                    _ => {
                        terminal::error(
                            "Failed to create a session. The runner registration has been \
                             deleted from the server, please re-configure.",
                        );
                        return Err(code::TERMINATED);
                    }
                }
            }
            Err(error) => terminal::error(&format!(
                "Runner connect error: {error:#}. Retrying until reconnected."
            )),
        }
        if signal.recv_timeout(pause).is_ok() {
            terminal::line("Exiting...");
            return Err(code::SUCCESS);
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

fn patience() -> Duration {
    std::env::var("SIMULATED_AGENT_CONFLICT_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(CONFLICT_PATIENCE, Duration::from_secs)
}

struct Listener<'a> {
    root: &'a Path,
    server: &'a Server,
    /// Where it asks for jobs.
    broker: Server,
    session: &'a str,
    once: bool,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

fn listen(mut listener: Listener<'_>) -> u8 {
    let mut polling = false;
    loop {
        if !polling {
            poll(&listener);
            polling = true;
        }
        let next = match listener.events.recv() {
            Ok(Event::Message(message)) => {
                polling = false;
                on_message(&mut listener, message)
            }
            Ok(Event::JobEnded(_)) => Next::Listen,
            Ok(Event::Signal) | Err(_) => {
                terminal::line("Exiting...");
                Next::Exit(code::SUCCESS)
            }
        };
        if let Next::Exit(code) = next {
            return code;
        }
    }
}

/// Asks for one message, on a thread of its own: a signal must not wait for it.
fn poll(listener: &Listener<'_>) {
    let server = listener.broker.clone();
    let session = listener.session.to_owned();
    let sender = listener.sender.clone();
    thread::spawn(move || {
        let message = server.message(&session);
        if message.is_err() {
            // Unreachable for now; another try is due in a moment.
            thread::sleep(Duration::from_secs(1));
        }
        // The main thread may have ended meanwhile.
        let _ = sender.send(Event::Message(message));
    });
}

fn on_message(listener: &mut Listener<'_>, message: Result<Answered<Option<Message>>>) -> Next {
    let offer = match message {
        Ok(Ok(Some(Message::Job { job_id }))) => job_id,
        Ok(Ok(Some(Message::Migration { broker_base_url }))) => {
            let moved = format!("Migrating to the broker {broker_base_url}");
            terminal::trace("INFO", "BrokerMessageListener", &moved);
            listener.broker = listener.server.moved(&broker_base_url);
            return Next::Listen;
        }
        Ok(Ok(None)) => return Next::Listen,
        Ok(Err(refusal)) => {
            terminal::error(&refusal.message);
            return Next::Exit(code::TERMINATED);
        }
        Err(error) => {
            terminal::error(&format!(
                "Runner connect error: {error:#}. Retrying until reconnected."
            ));
            return Next::Listen;
        }
    };
    let job = match listener.server.acquire(offer) {
        Ok(Ok(job)) => job,
        Ok(Err(refusal)) => {
            let skipped = format!("Skipping message Job. {}", refusal.message);
            terminal::trace("INFO", "Runner", &skipped);
            return Next::Listen;
        }
        Err(error) => {
            let lost = format!("Caught exception from acquiring job message: {error:#}");
            terminal::trace("ERR ", "Runner", &lost);
            return Next::Listen;
        }
    };
    let stopping = run_job(listener, &job);
    if listener.once || stopping {
        Next::Exit(code::SUCCESS)
    } else {
        Next::Listen
    }
}

/// Runs a job to its end; says whether a signal asked the agent to end meanwhile.
fn run_job(listener: &Listener<'_>, job: &Job) -> bool {
    let name = job.name().to_owned();
    terminal::event(&format!("Running job: {name}"));
    let (worker, mut orders) = match Worker::start(listener.root, job) {
        Ok(started) => started,
        Err(error) => {
            job::force_fail(listener.server, job.job_id, &format!("{error:#}"));
            return false;
        }
    };
    let waiting = {
        let server = listener.server.clone();
        let sender = listener.sender.clone();
        let id = job.job_id;
        thread::spawn(move || {
            let conclusion = match worker.wait() {
                End::Told(conclusion) => conclusion,
                End::Crashed(output) => job::force_fail(&server, id, &output),
            };
            let _ = sender.send(Event::JobEnded(conclusion));
        })
    };
    let mut stopping = false;
    let conclusion = loop {
        match listener.events.recv() {
            Ok(Event::JobEnded(conclusion)) => break conclusion,
            Ok(Event::Signal) => {
                terminal::line("Exiting...");
                stopping = true;
                worker::shut_down(&mut orders);
            }
            Ok(Event::Message(_)) => {}
            Err(_) => break Conclusion::Cancelled,
        }
    };
    // It sent its last word already.
    let _ = waiting.join();
    terminal::event(&format!(
        "Job {name} completed with result: {}",
        conclusion.result()
    ));
    stopping
}
