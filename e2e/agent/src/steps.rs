//! What one step of a job does: a script, a stage of an action, a hook, the job's containers. In a job with a container
//! the container hook runs scripts and actions.

use std::{env, path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::{
    action::{self, Action, Stage},
    container::{Container, Input, Mount, NULL, Paths, Response, job_context},
    context::{self, render, render_all},
    control::{Stop, Stopped},
    process::{End, Process},
    run::{Outcome, Own, Run, Task},
    shell::{self, Shell},
    work::{self, Environment, path},
};

/// What the real agent says of each failure of a container hook.
pub(crate) const HOOK_FAILED: &str = "Executing the custom container implementation failed. Please contact your self hosted runner administrator.";

/// A program to be run for a step.
#[derive(Debug)]
struct Program {
    /// Its name, or its path as the agent has it.
    name: String,
    /// Its arguments as one text, with the agent's paths.
    arguments: String,
    /// Where it runs, as the agent has it.
    folder: String,
    environment: Environment,
}

impl Run<'_> {
    /// Does what a task is there for.
    pub(crate) fn carry_out(&mut self, task: &Task, own: &Own) -> Result<Outcome> {
        self.is_about(&context::Action {
            files: Some(&own.files),
            ..Default::default()
        });
        match task {
            Task::Hook(event, path) => self.job_hook_runs(event, path, own),
            Task::StartContainers => self.start_containers(own).map(|()| Outcome::Success),
            Task::StopContainers => {
                self.call("cleanup_job", &json!({}), own)?;
                Ok(Outcome::Success)
            }
            Task::Hold => self.script(work::HOLD, None, None, own),
            Task::Step(index, stage) => {
                let step = self
                    .step(task)
                    .ok_or_else(|| anyhow!("there is no such step"))?;
                if let Some(action) = self.actions.get(index).map(Arc::clone) {
                    return match &*action {
                        Action::Script(script) => self.action(script, *index, *stage, own),
                        Action::Image(image) => self.image(image, own, *index),
                    };
                }
                let text = render(step.run.as_deref().unwrap_or_default(), &own.contexts)?;
                let defaults = &self.job.job.defaults;
                let chosen = |own_: &Option<workflow_file::Text>,
                              default: &Option<workflow_file::Text>| {
                    let written = own_.as_ref().or(default.as_ref());
                    written
                        .map(|text| render(&text.0, &own.contexts))
                        .transpose()
                };
                let shell = chosen(&step.shell, &defaults.shell)?;
                let folder = chosen(&step.working_directory, &defaults.working_directory)?;
                self.script(&text, shell.as_deref(), folder.as_deref(), own)
            }
        }
    }

    fn job_hook_runs(&mut self, event: &str, hook: &Path, own: &Own) -> Result<Outcome> {
        self.log.line(&format!(
            "A job {event} hook has been configured by the self-hosted runner administrator"
        ));
        self.log.line(&format!("##[group]Run '{}'", hook.display()));
        self.log.line("##[endgroup]");
        if !hook.is_file() {
            bail!("File doesn't exist: {}", hook.display());
        }
        let environment = self.base.clone();
        let end = self.start(&bash(hook), &environment, None, &own.stop)?;
        Ok(self.ended(end, own))
    }

    fn script(
        &mut self,
        text: &str,
        shell: Option<&str>,
        folder: Option<&str>,
        own: &Own,
    ) -> Result<Outcome> {
        let unnamed = shell.is_none_or(str::is_empty);
        let shell = Shell::of(shell)?;
        let mut name = shell.program.clone();
        if self.container.is_none() {
            // The one that is there counts where none is named.
            let bash = unnamed.then(|| self.which("bash")).flatten();
            let found = bash.or_else(|| self.which(&name));
            name = found.with_context(|| format!("{name}: command not found"))?;
        }
        let first = text.trim_start().lines().next().unwrap_or_default();
        self.log.line(&format!("##[group]Run {first}"));
        for line in text.trim_end().lines() {
            self.log.line(&format!("\u{1b}[36;1m{line}\u{1b}[0m"));
        }
        self.log.line(&format!("shell: {name} {}", shell.arguments));
        self.close_group(&own.env);
        let file = self
            .place
            .temp
            .join(format!("{}{}", self.place.name(), shell.extension));
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        let action = context::Action {
            name: "__run",
            files: Some(&own.files),
            ..Default::default()
        };
        let mut environment = own.env.clone();
        self.is_about(&action);
        environment.extend(self.base.clone());
        let program = Program {
            arguments: shell.command_line(&self.inside(&path(&file))),
            folder: path(&self.place.workspace.join(folder.unwrap_or_default())),
            name,
            environment,
        };
        self.execute(&program, own)
    }

    fn action(
        &mut self,
        script: &action::Script,
        index: usize,
        stage: Stage,
        own: &Own,
    ) -> Result<Outcome> {
        let action = self.actions.get(&index).map(Arc::clone);
        let again = Task::Step(index, Stage::Post);
        // Its end is to come once one of its stages has begun.
        if stage != Stage::Post
            && action.is_some_and(|action| action.has(Stage::Post))
            && !self.post.contains(&again)
        {
            self.post.push(again);
        }
        let inputs = self.inputs(script.inputs(), index, own)?;
        if stage == Stage::Post {
            self.log.line("Post job cleanup.");
        } else {
            self.log.line(&format!(
                "##[group]Run {}@{}",
                script.name(),
                script.reference
            ));
            self.log.line("with:");
            for (name, value) in inputs.iter().filter(|(_, value)| !value.is_empty()) {
                self.log.line(&format!("  {name}: {value}"));
            }
            self.close_group(&own.env);
        }
        let target = script.file(stage).context("the action has no such stage")?;
        let alpine = if self.alpine { "_alpine" } else { "" };
        let node = self
            .place
            .externals
            .join(format!("{}{alpine}/bin/node", script.using()));
        let mut environment = own.env.clone();
        let inputs = inputs.into_iter().map(|(name, value)| {
            (
                format!("INPUT_{}", name.replace(' ', "_").to_uppercase()),
                value,
            )
        });
        environment.extend(inputs);
        let kept = self.states.get(&index).into_iter().flatten();
        environment.extend(kept.map(|(name, value)| (format!("STATE_{name}"), value.clone())));
        self.is_about(&context::Action {
            name: &format!("__{}", script.name().replace(['/', '-'], "_")),
            repository: Some(script.name()),
            reference: Some(&script.reference),
            files: Some(&own.files),
        });
        environment.extend(self.base.clone());
        environment.extend(self.runtime());
        let target = path(&target);
        let program = Program {
            // In a container its path comes without the quotes that it has on the agent's side.
            arguments: if self.container.is_some() {
                self.inside(&target)
            } else {
                format!("\"{target}\"")
            },
            name: path(&node),
            folder: path(&self.place.workspace),
            environment,
        };
        self.execute(&program, own)
    }

    /// The inputs of an action: those of the file, and the defaults of the others.
    fn inputs(&self, known: &[(&str, &str)], index: usize, own: &Own) -> Result<Environment> {
        let step = &self.job.job.steps[index];
        let mut inputs = render_all(&step.with, &own.contexts)?;
        let unknown: Vec<&str> = inputs
            .keys()
            .map(String::as_str)
            .filter(|name| known.iter().all(|(known, _)| known != name))
            .collect();
        if !unknown.is_empty() {
            let valid: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.log.line(&format!(
                "##[warning]Unexpected input(s) '{}', valid inputs are ['{}']",
                unknown.join("', '"),
                valid.join("', '"),
            ));
        }
        for (name, default) in known {
            inputs
                .entry((*name).to_owned())
                .or_insert_with(|| (*default).to_owned());
        }
        Ok(inputs)
    }

    /// `uses: docker://…`, a container of its own.
    fn image(&mut self, image: &str, own: &Own, index: usize) -> Result<Outcome> {
        self.log.line(&format!("##[group]Run docker://{image}"));
        self.close_group(&own.env);
        let mut with = render_all(&self.job.job.steps[index].with, &own.contexts)?;
        let place = Arc::clone(&self.place);
        let paths = Paths::of_action(&place);
        let mut environment = own.env.clone();
        environment.insert("HOME".to_owned(), path(&place.home));
        let inputs = with.iter().map(|(name, value)| {
            (
                format!("INPUT_{}", name.replace(' ', "_").to_uppercase()),
                value.clone(),
            )
        });
        environment.extend(inputs);
        let action = context::Action {
            name: "__docker",
            files: Some(&own.files),
            ..Default::default()
        };
        self.is_about(&action);
        environment.extend(self.base.clone());
        environment.extend(self.runtime());
        let file_commands = place.file_commands();
        let mounts = [
            (Path::new("/var/run/docker.sock"), "/var/run/docker.sock"),
            (&place.temp, "/github/runner_temp"),
            (&place.home, "/github/home"),
            (&place.workflow, "/github/workflow"),
            (&file_commands, "/github/file_commands"),
            (&place.workspace, "/github/workspace"),
        ];
        let arguments = with.remove("args").unwrap_or_default();
        let mut container = Container {
            image: Some(image.to_owned()),
            entry_point: with
                .remove("entryPoint")
                .or_else(|| with.remove("entrypoint")),
            entry_point_args: arguments
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
            working_directory: Some("/github/workspace".to_owned()),
            environment_variables: paths.environment(&environment),
            system_mount_volumes: mounts
                .map(|(source, target)| Mount::system(source, target))
                .into(),
            ..Container::default()
        };
        container.add_proxies(&place.inherited);
        self.call("run_container_step", &json!(container), own)?;
        Ok(Outcome::Success)
    }

    fn start_containers(&mut self, own: &Own) -> Result<()> {
        self.post.push(Task::StopContainers);
        if let Some(container) = &mut self.container {
            container.for_the_job(&self.place);
        }
        let services: Vec<&Container> = self
            .services
            .iter()
            .map(|(_, container)| container)
            .collect();
        let args = json!({"container": self.container, "services": services});
        // A job without a container may leave `isAlpine` out, and still has to answer.
        let response = self.call("prepare_job", &args, own)?.context(NULL)?;
        self.alpine = response.is_alpine == Some(true);
        if let Some(made) = response.context {
            let names: Vec<&str> = self
                .services
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            let (container, services) =
                job_context(&made, &names).map_err(|error| anyhow!(error))?;
            self.known.container = container;
            self.known.services = services;
        }
        Ok(())
    }

    /// Runs a program: here, or by the hook in the job's container.
    fn execute(&mut self, program: &Program, own: &Own) -> Result<Outcome> {
        let prepended = self.known.prepended();
        if self.container.is_none() {
            let process = Process {
                program: &program.name,
                arguments: shell::split(&program.arguments),
                environment: self.place.with_own(&program.environment, &prepended),
                folder: Path::new(&program.folder),
                input: None,
                alone: false,
            };
            let end = process.run(&own.stop, |line| self.commands.line(line, self.log))?;
            return Ok(self.ended(end, own));
        }
        let words: Vec<&str> = program.arguments.split(' ').map(str::trim).collect();
        let paths = Paths::of_job(&self.place);
        let args = json!({
            "entryPointArgs": words,
            "entryPoint": paths.inside(&program.name),
            "environmentVariables": paths.environment(&program.environment),
            "prependPath": prepended,
            "workingDirectory": paths.inside(&program.folder),
        });
        self.call("run_script_step", &args, own)?;
        Ok(Outcome::Success)
    }

    /// One call of the container hook; its answer, where it gave one.
    fn call(&mut self, command: &'static str, args: &Value, own: &Own) -> Result<Option<Response>> {
        let hook = self.hook.clone().unwrap_or_default();
        let answered = self.hooked(&hook, command, args, own);
        let response = answered.map_err(|error| {
            crate::terminal::trace("ERR ", "ContainerHookManager", &format!("{error:#}"));
            anyhow!(HOOK_FAILED)
        })?;
        if let Some(state) = response
            .as_ref()
            .and_then(|response| response.state.clone())
        {
            self.hook_state = state.into();
        }
        Ok(response)
    }

    fn hooked(
        &mut self,
        hook: &Path,
        command: &'static str,
        args: &Value,
        own: &Own,
    ) -> Result<Option<Response>> {
        if !hook.is_file() {
            bail!("File not found at '{}'.", hook.display());
        }
        if hook.extension().is_none_or(|extension| extension != "sh") {
            bail!(
                "{}: the simulated agent runs hooks that end in .sh only",
                hook.display()
            );
        }
        let answer = self
            .place
            .hook_responses()
            .join(format!("{}.json", self.place.name()));
        std::fs::write(&answer, "").with_context(|| format!("writing {}", answer.display()))?;
        let state = self.hook_state.clone();
        let input = Input {
            command,
            response_file: path(&answer),
            args,
            state: &state,
        };
        self.log.line(&format!("##[group]Run '{}'", hook.display()));
        self.log
            .line("shell: /usr/bin/bash --noprofile --norc -e -o pipefail {0}");
        self.log.line("##[endgroup]");
        let environment = self.base.clone();
        let input = json!(input).to_string();
        let end = self.start(&bash(hook), &environment, Some(&input), &own.stop)?;
        if end.stopped.is_some() {
            bail!("the hook was told to stop");
        }
        if end.code != 0 {
            self.log
                .error(&format!("Process completed with exit code {}.", end.code));
            bail!("the hook did not execute {command} successfully");
        }
        let needs_alpine = command == "prepare_job" && self.container.is_some();
        read_response(&answer, needs_alpine)
    }

    /// Runs a script of the runner's administrator, in the agent's own container.
    fn start(
        &mut self,
        arguments: &[String],
        environment: &Environment,
        input: Option<&str>,
        stop: &Stop,
    ) -> Result<End> {
        let prepended = self.known.prepended();
        let process = Process {
            program: "bash",
            arguments: arguments.to_vec(),
            environment: self.place.with_own(environment, &prepended),
            folder: &self.place.workspace,
            input,
            alone: input.is_some(),
        };
        process.run(stop, |line| self.commands.line(line, self.log))
    }

    /// What the end of a process means, and what is said of it.
    fn ended(&self, end: End, own: &Own) -> Outcome {
        match end {
            End {
                stopped: Some(Stopped::Cancelled),
                ..
            } => {
                if let Some(order) = self.cancel.get() {
                    self.log.error(&order.reason);
                }
                self.log.error("The operation was canceled.");
                Outcome::Cancelled
            }
            End {
                stopped: Some(Stopped::TimedOut),
                ..
            } => {
                self.log.error(&format!(
                    "The action '{}' has timed out after {} minutes.",
                    own.title, own.minutes
                ));
                Outcome::Failure
            }
            End { code: 0, .. } => Outcome::Success,
            End { code, .. } => {
                self.log
                    .error(&format!("Process completed with exit code {code}."));
                Outcome::Failure
            }
        }
    }

    /// Says which step `GITHUB_…` and `RUNNER_…` are about: its processes have them, and the hook that runs them.
    fn is_about(&mut self, action: &context::Action<'_>) {
        self.base = context::github(self.job, &self.place, action);
        self.base.extend(self.place.runner());
    }

    /// What actions have beside it.
    fn runtime(&self) -> Environment {
        let server = self
            .job
            .github
            .get("server_url")
            .cloned()
            .unwrap_or_default();
        [
            ("ACTIONS_RUNTIME_URL", server),
            ("ACTIONS_RUNTIME_TOKEN", context::token(self.job).to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn close_group(&self, env: &Environment) {
        if !env.is_empty() {
            self.log.line("env:");
        }
        for (name, value) in env {
            self.log.line(&format!("  {name}: {value}"));
        }
        self.log.line("##[endgroup]");
    }

    /// A path as the step has it.
    fn inside(&self, path: &str) -> String {
        match self.container {
            Some(_) => Paths::of_job(&self.place).inside(path),
            None => path.to_owned(),
        }
    }

    /// The program of this name, in the folders of the job's `PATH`.
    fn which(&self, name: &str) -> Option<String> {
        let own = self
            .place
            .inherited
            .get("PATH")
            .cloned()
            .unwrap_or_default();
        let folders = self
            .known
            .prepended()
            .into_iter()
            .map(Into::into)
            .chain(env::split_paths(&own));
        let mut found = folders.map(|folder: std::path::PathBuf| folder.join(name));
        found
            .find(|program| program.is_file())
            .map(|program| path(&program))
    }
}

/// How scripts of the administrator are run.
fn bash(script: &Path) -> [String; 2] {
    ["-e".to_owned(), path(script)]
}

fn read_response(file: &Path, needs_alpine: bool) -> Result<Option<Response>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(_) if needs_alpine => bail!("Response file is required but not found"),
        Err(_) => return Ok(None),
    };
    let _ = std::fs::remove_file(file);
    let response: Option<Response> = if text.trim().is_empty() {
        None
    } else {
        serde_json::from_str(&text).context("the response file is not understood")?
    };
    if needs_alpine {
        let response = response
            .as_ref()
            .context("Response file could not be read")?;
        response.is_alpine.context(
            "The property 'isAlpine' is required but was not found in the response file.",
        )?;
    }
    Ok(response)
}
