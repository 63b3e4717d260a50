//! The parent of everything that a cluster runs.
//!
//! A hidden subcommand. As root it is the first process of its own PID, mount and network namespaces, so the end of
//! this one process is the end of every process, mount, interface, route and iptables rule of the cluster: the kernel
//! does the tidying. Without root it is a plain background process, and what it started is found by its environment.
//!
//! It starts programs on request, over a unix socket, one JSON line each way.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use serde::{Deserialize, Serialize};

use crate::process::{Identity, MARKER, append, output};

/// By then a supervisor answers, on a machine that has other things to do.
const ANSWERS: Duration = Duration::from_mins(1);

/// A program to keep running in the background.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Its name in the cluster; its log is `logs/NAME.log`.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment, over the supervisor's own.
    pub env: BTreeMap<String, String>,
}

impl Program {
    /// A program with no arguments yet.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            path: path.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }
}

/// What the supervisor is asked.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Start a program.
    Start(Program),
    /// Send a signal to a program, by number.
    Signal(String, i32),
    /// How is a program?
    Status(String),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// It runs.
    Running,
    /// It has ended, in words.
    Ended(String),
    /// No such program, or it did not start.
    Failed(String),
}

/// The supervisor of a cluster, from outside.
#[derive(Clone, Debug)]
pub struct Supervisor {
    dir: PathBuf,
}

impl Supervisor {
    /// The supervisor of the cluster in this folder, running or not.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    /// This program, as it was when the cluster was started: a build replaces the one in `target`, and `cargo test` is a
    /// build, too.
    pub fn program(&self) -> PathBuf {
        self.dir.join("e2e")
    }

    /// Starts it, inside namespaces of its own when asked, and waits until it answers.
    pub fn launch(dir: &Path, sandbox: bool) -> Result<Self> {
        let own = Self::at(dir).program();
        fs::copy("/proc/self/exe", &own).context("cannot copy this program")?;
        let mut command = if sandbox {
            let mut unshare = Command::new("unshare");
            unshare
                .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--"])
                .arg(&own);
            unshare
        } else {
            Command::new(&own)
        };
        command.arg("supervise").arg("--dir").arg(dir);
        if sandbox {
            command.arg("--sandbox");
        }
        let log = dir.join("logs/supervisor.log");
        let file = append(&log)?;
        let mut child = command
            .env(MARKER, dir)
            // A terminal's Ctrl-C is for us, not for the cluster.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start the supervisor (`unshare` of util-linux)")?;
        let this = Self::at(dir);
        let mut ended = None;
        crate::process::poll("the supervisor to answer", ANSWERS, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || UnixStream::connect(this.socket()).is_ok()
        })?;
        if let Some(status) = ended {
            bail!(
                "the supervisor ended at once ({status}):\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
        }
        Ok(this)
    }

    /// Starts one inside this one's network namespace, with processes and mounts of its own: a machine in the machine.
    /// Its end is the end of all that it started.
    pub fn nest(&self, name: &str, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("logs"))?;
        self.start(
            Program::new(name, "unshare")
                .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
                .arg(self.program().to_string_lossy())
                .args(["supervise", "--sandbox", "--dir"])
                .arg(dir.to_string_lossy()),
        )?;
        let nested = Self::at(dir);
        crate::process::poll("the nested supervisor to answer", ANSWERS, || {
            self.check(name).is_err() || UnixStream::connect(nested.socket()).is_ok()
        })?;
        self.check(name)?;
        Ok(nested)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("supervisor.sock")
    }

    /// The process, if the cluster ever had one.
    pub fn identity(&self) -> Option<Identity> {
        serde_json::from_slice(&fs::read(self.dir.join("supervisor.json")).ok()?).ok()
    }

    /// Starts a program.
    pub fn start(&self, program: Program) -> Result<()> {
        let name = program.name.clone();
        match self.ask(&Request::Start(program))? {
            Reply::Failed(why) => bail!("cannot start {name}: {why}"),
            Reply::Running | Reply::Ended(_) => Ok(()),
        }
    }

    /// Sends a signal to a program.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        match self.ask(&Request::Signal(name.to_owned(), signal.as_raw()))? {
            Reply::Failed(why) => bail!("cannot signal {name}: {why}"),
            Reply::Running | Reply::Ended(_) => Ok(()),
        }
    }

    /// An error where a program no longer runs, with the end of its log.
    pub fn check(&self, name: &str) -> Result<()> {
        let why = match self.ask(&Request::Status(name.to_owned()))? {
            Reply::Running => return Ok(()),
            Reply::Ended(how) => how,
            Reply::Failed(why) => why,
        };
        let log = self.log(name);
        let text = fs::read_to_string(&log).unwrap_or_default();
        bail!(
            "{name} does not run ({why}); the end of {}:\n{}",
            log.display(),
            crate::process::tail(&text, 15)
        );
    }

    /// The log of a program.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("logs/{name}.log"))
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        let mut stream = UnixStream::connect(self.socket())
            .with_context(|| format!("the cluster in {} does not run", self.dir.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        writeln!(stream, "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).context("the supervisor gave no answer")
    }
}

/// A started program.
#[derive(Debug)]
struct Entry {
    pid: u32,
    ended: Option<String>,
}

type Table = Arc<Mutex<BTreeMap<String, Entry>>>;

/// The hidden subcommand.
pub fn run(dir: &Path, sandbox: bool) -> Result<()> {
    // Before /proc is covered, its `self` still names us as the outside does.
    let outside = fs::read_link("/proc/self").context("cannot read /proc/self")?;
    let pid = outside
        .to_string_lossy()
        .parse()
        .context("/proc/self is no number")?;
    let identity = Identity::of(pid).context("cannot read our own start time")?;
    fs::write(dir.join("supervisor.json"), serde_json::to_vec(&identity)?)?;
    if sandbox {
        furnish(dir)?;
    }
    let listener = UnixListener::bind(dir.join("supervisor.sock"))
        .context("cannot listen on supervisor.sock")?;
    let table = Table::default();
    let (shared, logs) = (Arc::clone(&table), dir.join("logs"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(&stream, &shared, &logs) {
                eprintln!("request failed: {error:#}");
            }
        }
    });
    reap(&table)
}

/// Private mounts, so that paths which Kubernetes fixes (`/var/lib/kubelet`, `/run/containerd`, `/run/netns`, …) are
/// this cluster's own, and go with it.
fn furnish(dir: &Path) -> Result<()> {
    let mount = |args: &[&str]| output(Command::new("mount").args(args)).map(drop);
    mount(&["-t", "proc", "proc", "/proc"])?;
    mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    fs::create_dir_all("/run/lock")?;
    for target in ["var/lib", "var/log"] {
        let source = dir.join(target);
        fs::create_dir_all(&source)?;
        mount(&["--bind", &source.to_string_lossy(), &format!("/{target}")])?;
    }
    // A machine that is switched on again tells so by this.
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    // The kubelet sets the others for the whole machine. Here it sets files of ours.
    for (name, value) in [
        ("kernel/random/boot_id", boot_id.trim()),
        ("vm/overcommit_memory", "1"),
        ("vm/panic_on_oom", "0"),
        ("kernel/panic", "10"),
        ("kernel/panic_on_oops", "1"),
        ("kernel/keys/root_maxkeys", "1000000"),
        ("kernel/keys/root_maxbytes", "25000000"),
    ] {
        let target = format!("/proc/sys/{name}");
        if Path::new(&target).exists() {
            let source = format!("/run/sysctl-{}", name.replace('/', "."));
            fs::write(&source, format!("{value}\n"))?;
            mount(&["--bind", &source, &target])?;
        }
    }
    output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

fn serve(stream: &UnixStream, table: &Table, logs: &Path) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(()); // Somebody only looked whether we are there.
    }
    let mut entries = table.lock().unwrap_or_else(PoisonError::into_inner);
    let reply = match serde_json::from_str(&line)? {
        Request::Start(program) => match entries.get(&program.name) {
            Some(Entry { ended: None, .. }) => Reply::Failed("it runs already".to_owned()),
            // The lock is held until the entry is in the table, so its end cannot be missed.
            _ => match spawn(&program, logs) {
                Ok(pid) => {
                    entries.insert(program.name, Entry { pid, ended: None });
                    Reply::Running
                }
                Err(error) => Reply::Failed(format!("{error:#}")),
            },
        },
        Request::Signal(name, number) => match entries.get(&name) {
            Some(Entry {
                ended: Some(how), ..
            }) => Reply::Ended(how.clone()),
            Some(Entry { pid, .. }) => signal(*pid, number),
            None => Reply::Failed("it was never started".to_owned()),
        },
        Request::Status(name) => match entries.get(&name) {
            Some(Entry {
                ended: Some(how), ..
            }) => Reply::Ended(how.clone()),
            Some(_) => Reply::Running,
            None => Reply::Failed("it was never started".to_owned()),
        },
    };
    drop(entries);
    writeln!(&mut &*stream, "{}", serde_json::to_string(&reply)?)?;
    Ok(())
}

fn spawn(program: &Program, logs: &Path) -> Result<u32> {
    let log = append(&logs.join(format!("{}.log", program.name)))?;
    // Never waited for here: the reaper waits for everything.
    let child = Command::new(&program.path)
        .args(&program.args)
        .envs(&program.env)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| program.path.display().to_string())?;
    Ok(child.id())
}

fn signal(pid: u32, number: i32) -> Reply {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match (target, Signal::from_named_raw(number)) {
        // Not reaped yet, or the entry would say so: the pid is still this program's.
        (Some(pid), Some(signal)) => match kill_process(pid, signal) {
            Ok(()) => Reply::Running,
            Err(error) => Reply::Failed(error.to_string()),
        },
        _ => Reply::Failed(format!("signal {number} is unknown")),
    }
}

/// Waits for every child, orphans of the namespace included, for ever.
fn reap(table: &Table) -> Result<()> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                let how = ExitStatus::from_raw(status.as_raw()).to_string();
                let mut entries = table.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((name, entry)) = entries
                    .iter_mut()
                    .find(|(_, e)| e.pid == pid && e.ended.is_none())
                {
                    eprintln!("{name} ended: {how}");
                    entry.ended = Some(how);
                }
            }
            // No child yet.
            Ok(None) | Err(rustix::io::Errno::CHILD) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for children"),
        }
    }
}
