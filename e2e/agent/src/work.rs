//! The place where a job runs: folders, environment, and processes in it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, PipeReader, pipe},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    control::{Cancel, Log},
    server::Job,
    settings::Settings,
};

/// The file whose coming ends a held job.
pub(crate) const RELEASED: &str = "released";

/// The last step of a held job.
pub(crate) const HOLD: &str = r#"echo "Waiting to be released"
while [ ! -e "$RUNNER_TEMP/released" ]; do sleep 0.1; done
echo "Released"
"#;

/// Options of the agent come by variables with this prefix; jobs must not see them.
const INPUT: &str = "ACTIONS_RUNNER_INPUT_";

/// After SIGINT a step has so long before SIGTERM, and then so long before SIGKILL.
const GRACE: [Duration; 2] = [Duration::from_millis(7500), Duration::from_millis(2500)];

/// Folders and environment of one job.
#[derive(Debug)]
pub(crate) struct Place {
    workspace: PathBuf,
    temp: PathBuf,
    runner: String,
    environment: BTreeMap<String, String>,
}

impl Place {
    /// Makes the folders.
    pub(crate) fn prepare(root: &Path, settings: &Settings, job: &Job) -> Result<Self> {
        let root = root
            .canonicalize()
            .with_context(|| format!("finding {}", root.display()))?;
        let work = root.join(&settings.work_folder);
        let repository = job
            .environment
            .get("GITHUB_REPOSITORY")
            .and_then(|name| name.rsplit('/').next())
            .unwrap_or("repository");
        let workspace = work.join(repository).join(repository);
        let temp = work.join("_temp");
        // A persistent runner starts each job with an empty folder for temporary files.
        let _ = fs::remove_dir_all(&temp);
        let tools = work.join("_tool");
        for folder in [&workspace, &temp, &tools] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut environment = job.environment.clone();
        for name in [
            "GITHUB_ENV",
            "GITHUB_OUTPUT",
            "GITHUB_PATH",
            "GITHUB_STEP_SUMMARY",
        ] {
            let file = temp.join(name.to_lowercase());
            fs::write(&file, "").with_context(|| format!("writing {}", file.display()))?;
            environment.insert(name.to_owned(), text(&file));
        }
        environment.extend([
            ("CI".to_owned(), "true".to_owned()),
            ("GITHUB_ACTIONS".to_owned(), "true".to_owned()),
            ("GITHUB_WORKSPACE".to_owned(), text(&workspace)),
            ("RUNNER_NAME".to_owned(), settings.agent_name.clone()),
            ("RUNNER_OS".to_owned(), "Linux".to_owned()),
            ("RUNNER_ARCH".to_owned(), "X64".to_owned()),
            ("RUNNER_ENVIRONMENT".to_owned(), "self-hosted".to_owned()),
            ("RUNNER_WORKSPACE".to_owned(), text(&work.join(repository))),
            ("RUNNER_TEMP".to_owned(), text(&temp)),
            ("RUNNER_TOOL_CACHE".to_owned(), text(&tools)),
        ]);
        Ok(Self {
            workspace,
            temp,
            runner: settings.agent_name.clone(),
            environment,
        })
    }

    /// Folder for temporary files.
    pub(crate) fn temp(&self) -> &Path {
        &self.temp
    }

    /// Name of the runner.
    pub(crate) fn runner(&self) -> &str {
        &self.runner
    }

    /// Runs a script with bash as GitHub does; gives its exit code.
    pub(crate) fn bash(&self, script: &Path, cancel: &Cancel, log: &Log) -> Result<i32> {
        let (reader, writer) = pipe().context("making a pipe")?;
        let errors = writer.try_clone().context("making a pipe")?;
        let mut command = Command::new("bash");
        command
            .args(["--noprofile", "--norc", "-e", "-o", "pipefail"])
            .arg(script)
            .current_dir(&self.workspace)
            .env_clear()
            .envs(env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with(INPUT)))
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(errors)
            .process_group(0);
        let mut child = command.spawn().context("starting bash")?;
        // It holds ends of the pipe, which would never close.
        drop(command);
        let printed = copy(reader, log.clone());
        let status = wait(&mut child, cancel)?;
        // What a left-over of the script holds open is not waited for.
        let _ = printed.recv_timeout(Duration::from_secs(2));
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

/// Copies lines into the log; the channel closes when all is copied.
fn copy(reader: PipeReader, log: Log) -> mpsc::Receiver<()> {
    let (done, all) = mpsc::channel::<()>();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            log.line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
            line.clear();
        }
        drop(done);
    });
    all
}

/// Waits for a process; when it is to stop, its whole group hears of it, louder and louder.
fn wait(child: &mut Child, cancel: &Cancel) -> Result<std::process::ExitStatus> {
    let group = Pid::from_child(child);
    let mut asked: Option<(Instant, usize)> = None;
    loop {
        if let Some(status) = child.try_wait().context("waiting for bash")? {
            return Ok(status);
        }
        let due = match asked {
            None => cancel.reason().is_some().then_some((Signal::INT, 0)),
            Some((since, 0)) if since.elapsed() >= GRACE[0] => Some((Signal::TERM, 1)),
            Some((since, 1)) if since.elapsed() >= GRACE[1] => Some((Signal::KILL, 2)),
            Some(_) => None,
        };
        if let Some((signal, stage)) = due {
            // It may have ended this very moment.
            let _ = kill_process_group(group, signal);
            asked = Some((Instant::now(), stage));
        }
        thread::sleep(Duration::from_millis(20));
    }
}
