//! Jobs with and without a container, with a container hook that writes down what it is given. What it has to be given is
//! derived from the sources of actions/runner.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use workflow_file::File;

mod inputs;
mod order;

use super::*;
use crate::settings::Settings;

/// Writes each call down, and does what the file by the command's name says.
const HOOK: &str = r#"dir=$(dirname "$0")
calls=("$dir"/calls/*.json)
[ -e "${calls[0]}" ] && n=${#calls[@]} || n=0
input=$dir/calls/$(printf %02d "$n").json
cat > "$input"
command=$(sed 's/.*"command":"\([^"]*\)".*/\1/' "$input")
response=$(sed 's/.*"responseFile":"\([^"]*\)".*/\1/' "$input")
[ -e "$response" ] && [ ! -s "$response" ] || { echo "the response file is not there and empty"; exit 90; }
[ ! -e "$dir/$command.sh" ] || . "$dir/$command.sh"
"#;

/// The container is there.
const PREPARED: &str = r#"echo '{"isAlpine":false}' > "$response""#;

/// Runs the script of a step as a container would: `/__w` is the agent's work folder.
const EXECUTES: &str = r#"script=$(sed 's|.*"entryPointArgs":\["-e","/__w/\([^"]*\)"\].*|\1|' "$input")
sh -e "${RUNNER_TEMP%/_temp}/$script""#;

#[derive(Default)]
struct Told(RefCell<Vec<(usize, String, String)>>);

impl Steps for Told {
    fn begins(&self, _: usize) {}

    fn ended(&self, number: usize, conclusion: &str, summary: &str) {
        let told = (number, conclusion.to_owned(), summary.to_owned());
        self.0.borrow_mut().push(told);
    }
}

/// An agent's folder with a hook in it.
struct Home {
    root: PathBuf,
    own: Environment,
    cancel: Cancel,
}

/// What was seen of a job.
#[derive(Debug)]
struct Seen {
    conclusion: Conclusion,
    log: String,
    /// What the hook was given, with the agent's folder as `/home/runner`.
    calls: Vec<Value>,
    /// Conclusions of the steps of the file.
    steps: Vec<String>,
    summaries: Vec<String>,
}

impl Seen {
    fn commands(&self) -> Vec<&str> {
        self.calls
            .iter()
            .map(|call| call["command"].as_str().unwrap())
            .collect()
    }
}

impl Home {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("agent-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("calls")).unwrap();
        let home = Self {
            own: [("PATH", std::env::var("PATH").unwrap())]
                .map(|(k, v)| (k.to_owned(), v))
                .into(),
            cancel: Cancel::default(),
            root: root.canonicalize().unwrap(),
        };
        fs::write(home.root.join("containers.sh"), HOOK).unwrap();
        home
    }

    fn with_hook(name: &str) -> Self {
        let mut home = Self::new(name);
        let hook = home.root.join("containers.sh").display().to_string();
        home.set("ACTIONS_RUNNER_CONTAINER_HOOKS", &hook);
        home.answers("prepare_job", PREPARED);
        home
    }

    fn set(&mut self, name: &str, value: &str) {
        self.own.insert(name.to_owned(), value.to_owned());
    }

    /// What the hook does at a command.
    fn answers(&self, command: &str, script: &str) {
        fs::write(self.root.join(format!("{command}.sh")), script).unwrap();
    }

    /// A hook of the job that leaves a line in the list of calls.
    fn job_hook(&mut self, event: &str, end: &str) {
        let path = self.root.join(format!("{event}.sh"));
        let line = format!("{{\"command\":\"{event}\"}}");
        let number = "$(ls calls | wc -l)";
        fs::write(
            &path,
            format!(
                "cd {}\necho '{line}' > calls/$(printf %02d {number}).json\n{end}\n",
                self.root.display()
            ),
        )
        .unwrap();
        let variable = format!("ACTIONS_RUNNER_HOOK_JOB_{}", event.to_uppercase());
        self.set(&variable, &path.display().to_string());
    }

    /// Runs the first job of a file whose job has these lines.
    fn run(&self, job: &str) -> Seen {
        self.run_with(job, |_| {})
    }

    fn run_with(&self, job: &str, change: impl FnOnce(&mut Job)) -> Seen {
        let text = format!("name: CUDA\non: push\njobs:\n  test:\n    runs-on: cuda\n{job}");
        let written = File::parse(&text)
            .unwrap_or_else(|error| panic!("{text}\n{error}"))
            .jobs
            .remove(0);
        let mut job = job_of(written);
        change(&mut job);
        let settings = Settings {
            agent_id: "1".to_owned(),
            agent_name: "runner-1".to_owned(),
            server_url: String::new(),
            git_hub_url: String::new(),
            work_folder: "_work".to_owned(),
            ephemeral: "True".to_owned(),
        };
        let place = Arc::new(Place::prepare(&self.root, &settings, &job, &self.own).unwrap());
        let (sender, lines) = mpsc::channel();
        let log = Log::new(sender, job.secrets.values());
        let told = Told::default();
        let conclusion = match Run::set_up(place, &job, &told, &self.cancel, &log) {
            Ok(mut run) => run.finish_all(),
            Err(error) => {
                log.error(&format!("{error:#}"));
                Conclusion::Failure
            }
        };
        drop(log);
        let (mut steps, mut summaries) = (Vec::new(), Vec::new());
        for (_, conclusion, summary) in told.0.into_inner() {
            steps.push(conclusion);
            summaries.push(summary);
        }
        Seen {
            conclusion,
            log: lines.into_iter().collect(),
            calls: self.calls(),
            steps,
            summaries,
        }
    }

    fn calls(&self) -> Vec<Value> {
        let mut files: Vec<_> = fs::read_dir(self.root.join("calls"))
            .unwrap()
            .flatten()
            .map(|file| file.path())
            .collect();
        files.sort();
        let root = self.root.display().to_string();
        let call = |file: &PathBuf| {
            let text = fs::read_to_string(file)
                .unwrap()
                .replace(&root, "/home/runner");
            serde_json::from_str(&text).unwrap()
        };
        files.iter().map(call).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn job_of(written: workflow_file::Job) -> Job {
    let github = [
        ("job", "test"),
        ("repository", "acme/cuda"),
        ("actor", "octocat"),
        ("sha", "abc"),
        ("server_url", "https://github.test"),
    ];
    Job {
        job_id: 1,
        job: written,
        hold: false,
        container_hooks: true,
        secrets: [("GITHUB_TOKEN", "ghs_token"), ("TOKEN", "s3cret")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        github: github.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        event: json!({"ref": "refs/heads/main"}),
    }
}
