//! The place where a job runs: its folders, and the environment that all its processes have.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};

use crate::{server::Job, settings::Settings};

/// The file whose coming ends a held job.
pub(crate) const RELEASED: &str = "released";

/// The last step of a held job.
pub(crate) const HOLD: &str = r#"echo "Waiting to be released"
while [ ! -e "$RUNNER_TEMP/released" ]; do sleep 0.1; done
echo "Released"
"#;

/// Options of the agent come by variables with this prefix; jobs must not see them.
pub(crate) const INPUT: &str = "ACTIONS_RUNNER_INPUT_";

/// The agent's own environment.
pub(crate) type Environment = BTreeMap<String, String>;

/// Folders and environment of one job. All paths are the agent's own.
#[derive(Debug)]
pub(crate) struct Place {
    /// `_work`.
    pub(crate) work: PathBuf,
    /// Programs that come with the agent.
    pub(crate) externals: PathBuf,
    /// The repository's own folder.
    pub(crate) workspace: PathBuf,
    /// Temporary files.
    pub(crate) temp: PathBuf,
    /// Tools that jobs keep.
    pub(crate) tools: PathBuf,
    /// Actions.
    pub(crate) actions: PathBuf,
    /// `/github/home` of a container.
    pub(crate) home: PathBuf,
    /// `/github/workflow` of a container.
    pub(crate) workflow: PathBuf,
    /// Name of the runner.
    pub(crate) runner: String,
    /// What the agent itself was started with, less its options.
    pub(crate) inherited: Environment,
    /// Counts the names that have to be new.
    names: AtomicU64,
}

impl Place {
    /// Makes the folders.
    pub(crate) fn prepare(
        root: &Path,
        settings: &Settings,
        job: &Job,
        own: &Environment,
    ) -> Result<Self> {
        let root = root
            .canonicalize()
            .with_context(|| format!("finding {}", root.display()))?;
        let work = root.join(&settings.work_folder);
        let repository = job
            .github
            .get("repository")
            .and_then(|name| name.rsplit('/').next())
            .unwrap_or("repository");
        let temp = work.join("_temp");
        // A persistent runner starts each job with an empty folder for temporary files.
        let _ = fs::remove_dir_all(&temp);
        let tools = ["RUNNER_TOOL_CACHE", "AGENT_TOOLSDIRECTORY"]
            .iter()
            .find_map(|name| own.get(*name))
            .map_or_else(|| work.join("_tool"), PathBuf::from);
        let place = Self {
            externals: root.join("externals"),
            workspace: work.join(repository).join(repository),
            actions: work.join("_actions"),
            home: temp.join("_github_home"),
            workflow: temp.join("_github_workflow"),
            runner: settings.agent_name.clone(),
            inherited: own
                .iter()
                .filter(|(name, _)| !name.starts_with(INPUT))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            names: AtomicU64::default(),
            work,
            temp,
            tools,
        };
        let folders = [
            &place.workspace,
            &place.tools,
            &place.actions,
            &place.home,
            &place.workflow,
            &place.file_commands(),
            &place.hook_responses(),
        ];
        for folder in folders {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let event = place.event();
        fs::write(&event, job.event.to_string())
            .with_context(|| format!("writing {}", event.display()))?;
        Ok(place)
    }

    /// Where steps leave what the agent reads after them.
    pub(crate) fn file_commands(&self) -> PathBuf {
        self.temp.join("_runner_file_commands")
    }

    /// Where container hooks answer.
    pub(crate) fn hook_responses(&self) -> PathBuf {
        self.temp.join("_runner_hook_responses")
    }

    /// What started the run.
    pub(crate) fn event(&self) -> PathBuf {
        self.workflow.join("event.json")
    }

    /// A name that no other file of the job has.
    pub(crate) fn name(&self) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        format!("00000000-0000-4000-8000-{number:012x}")
    }

    /// `RUNNER_…`.
    pub(crate) fn runner(&self) -> Environment {
        let parent = self.workspace.parent().unwrap_or(&self.workspace);
        [
            ("RUNNER_OS", "Linux".to_owned()),
            ("RUNNER_ARCH", "X64".to_owned()),
            ("RUNNER_ENVIRONMENT", "self-hosted".to_owned()),
            ("RUNNER_NAME", self.runner.clone()),
            ("RUNNER_WORKSPACE", path(parent)),
            ("RUNNER_TEMP", path(&self.temp)),
            ("RUNNER_TOOL_CACHE", path(&self.tools)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// What a process of the agent's own has: its environment, then this.
    pub(crate) fn with_own(&self, environment: &Environment, prepended: &[String]) -> Environment {
        let mut whole = self.inherited.clone();
        whole.extend(environment.clone());
        whole.insert("GITHUB_ACTIONS".to_owned(), "true".to_owned());
        whole
            .entry("CI".to_owned())
            .or_insert_with(|| "true".to_owned());
        if !prepended.is_empty() {
            let own = whole.get("PATH").cloned().unwrap_or_default();
            whole.insert("PATH".to_owned(), format!("{}:{own}", prepended.join(":")));
        }
        whole
    }
}

/// A path as text.
pub(crate) fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
