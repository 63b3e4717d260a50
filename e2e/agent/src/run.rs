//! A job from its set-up to its end: which steps there are, in which order, which of them run, and what comes of it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use workflow_file::{Scope, Status, Step};

use crate::{
    action::{Action, Stage},
    commands::Commands,
    container::Container,
    context::{self, Known, contexts, render, render_all},
    control::{Cancel, Log, Stop},
    files::Files,
    job::Conclusion,
    server::{Job, Steps},
    work::{Environment, Place},
};

/// A job that runs.
pub(crate) struct Run<'a> {
    pub(crate) place: Arc<Place>,
    pub(crate) job: &'a Job,
    pub(crate) steps: &'a dyn Steps,
    pub(crate) cancel: &'a Cancel,
    pub(crate) log: &'a Log,
    pub(crate) known: Known,
    /// The container of the job.
    pub(crate) container: Option<Container>,
    /// Those beside it, by name.
    pub(crate) services: Vec<(String, Container)>,
    /// The container hook, where one may be used.
    pub(crate) hook: Option<PathBuf>,
    /// What the container hook said last.
    pub(crate) hook_state: Value,
    /// The job's container is an Alpine one.
    pub(crate) alpine: bool,
    /// Actions by the number of their step.
    pub(crate) actions: BTreeMap<usize, Arc<Action>>,
    /// What actions keep from one stage to the next, by the number of their step.
    pub(crate) states: BTreeMap<usize, Environment>,
    /// What is to be done when all steps are over, the last one first.
    pub(crate) post: Vec<Task>,
    /// The commands of the step that runs.
    pub(crate) commands: Commands,
    /// `GITHUB_…` and `RUNNER_…` of the step that runs.
    pub(crate) base: Environment,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// A hook of the job.
    Hook(&'static str, PathBuf),
    StartContainers,
    StopContainers,
    /// A stage of a step of the file, which is a script or an action.
    Step(usize, Stage),
    /// Waits until the server says so.
    Hold,
}

/// What came of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure,
    Cancelled,
    Skipped,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// What a task has of its own while it runs.
#[derive(Debug)]
pub(crate) struct Own {
    /// The context `env` with the step's own.
    pub(crate) env: Environment,
    pub(crate) contexts: Value,
    pub(crate) stop: Stop,
    pub(crate) files: Files,
    /// `timeout-minutes`, as written.
    pub(crate) minutes: String,
    pub(crate) title: String,
}

impl<'a> Run<'a> {
    /// The part of the set-up that can fail: then nothing of the job runs, not even its hooks.
    pub(crate) fn set_up(
        place: Arc<Place>,
        job: &'a Job,
        steps: &'a dyn Steps,
        cancel: &'a Cancel,
        log: &'a Log,
    ) -> Result<Self> {
        let hook = place.inherited.get("ACTIONS_RUNNER_CONTAINER_HOOKS");
        let hook = hook.filter(|hook| !hook.is_empty() && job.container_hooks);
        let mut run = Self {
            hook: hook.map(PathBuf::from),
            place,
            job,
            steps,
            cancel,
            log,
            known: Known::default(),
            container: None,
            services: Vec::new(),
            hook_state: Value::Null,
            alpine: false,
            actions: BTreeMap::new(),
            states: BTreeMap::new(),
            post: Vec::new(),
            commands: Commands::default(),
            base: Environment::new(),
        };
        for level in &job.job.env {
            let contexts = run.contexts(&run.known.env);
            run.known.env.extend(render_all(level, &contexts)?);
        }
        run.find_containers()?;
        for (index, step) in job.job.steps.iter().enumerate() {
            if let Some(uses) = &step.uses {
                log.line(&format!("Download action repository '{uses}'"));
                let action = Action::prepare(uses, &run.place)?;
                run.actions.insert(index, Arc::new(action));
            }
        }
        let any = run.container.is_some()
            || !run.services.is_empty()
            || run
                .actions
                .values()
                .any(|action| matches!(**action, Action::Image(_)));
        if any && run.hook.is_none() {
            // Where the real agent looks for Docker's program.
            bail!("docker: command not found");
        }
        Ok(run)
    }

    fn find_containers(&mut self) -> Result<()> {
        let contexts = self.contexts(&self.known.env);
        let evaluated = |container: &workflow_file::Container| -> Result<workflow_file::Container> {
            Ok(serde_json::from_value(rendered(
                json!(container),
                &contexts,
            )?)?)
        };
        let own = &self.place.inherited;
        let token = context::token(self.job);
        let actor = self.job.github.get("actor").map_or("", String::as_str);
        if let Some(written) = &self.job.job.container {
            let written = evaluated(written)?;
            // An expression may leave it empty: then the job has none.
            if !written.image.is_empty() {
                self.container = Some(Container::written(&written, own));
            }
        }
        let required = own
            .get("ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER")
            .map(|value| value.to_lowercase());
        if self.container.is_none() && matches!(required.as_deref(), Some("true" | "1" | "$true")) {
            bail!(
                "Jobs without a job container are forbidden on this runner, please add a 'container:' to your job or \
                 contact your self-hosted runner administrator."
            );
        }
        for service in &self.job.job.services {
            let written = evaluated(&service.container)?;
            if written.image.is_empty() {
                self.log.line(&format!(
                    "The service '{}' will not be started because the container definition has an empty image.",
                    service.name
                ));
                continue;
            }
            let made = Container::written(&written, own);
            self.services.push((service.name.clone(), made));
        }
        let services = self.services.iter_mut().map(|(_, container)| container);
        for container in self.container.iter_mut().chain(services) {
            container.default_registry(actor, token);
        }
        Ok(())
    }

    /// Does all that the job consists of.
    pub(crate) fn finish_all(&mut self) -> Conclusion {
        if let Some(path) = self.job_hook("ACTIONS_RUNNER_HOOK_JOB_COMPLETED") {
            self.post.push(Task::Hook("completed", path));
        }
        let started = self.job_hook("ACTIONS_RUNNER_HOOK_JOB_STARTED");
        let mut tasks: Vec<Task> = started
            .map(|path| Task::Hook("started", path))
            .into_iter()
            .collect();
        if self.container.is_some() || !self.services.is_empty() {
            tasks.push(Task::StartContainers);
        }
        let with_pre = self
            .actions
            .iter()
            .filter(|(_, action)| action.has(Stage::Pre));
        tasks.extend(with_pre.map(|(index, _)| Task::Step(*index, Stage::Pre)));
        tasks.extend((0..self.job.job.steps.len()).map(|index| Task::Step(index, Stage::Main)));
        if self.job.hold {
            tasks.push(Task::Hold);
        }
        for task in tasks {
            self.perform(&task);
        }
        while let Some(task) = self.post.pop() {
            self.perform(&task);
        }
        match self.known.status {
            Status::Success => Conclusion::Success,
            Status::Failure => Conclusion::Failure,
            Status::Cancelled => Conclusion::Cancelled,
        }
    }

    fn job_hook(&self, variable: &str) -> Option<PathBuf> {
        let path = self.place.inherited.get(variable);
        path.filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// One task, from its condition to what it leaves.
    fn perform(&mut self, task: &Task) {
        let step = self.step(task).cloned().unwrap_or_default();
        let number = match task {
            Task::Step(index, Stage::Main) => Some(index + 1),
            _ => None,
        };
        self.look_for_cancel();
        if let Some(number) = number {
            self.steps.begins(number);
        }
        self.commands = Commands::default();
        let mut left = Left::default();
        let outcome = match self.ready(task, &step) {
            Ok(Some(own)) => {
                let outcome = self.carry_out(task, &own);
                self.finish(task, &own, outcome, &mut left)
            }
            Ok(None) => Outcome::Skipped,
            Err(error) => self.failed(&error),
        };
        let conclusion = self.concluded(&step, outcome);
        self.look_for_cancel();
        if conclusion == Outcome::Failure && self.known.status == Status::Success {
            self.known.status = Status::Failure;
        }
        if let (Task::Step(_, Stage::Main), Some(id)) = (task, &step.id) {
            let entry = json!({"outcome": outcome.as_str(), "conclusion": conclusion.as_str(), "outputs": left.outputs});
            self.known.steps.insert(id.clone(), entry);
        }
        if let Some(number) = number {
            let summary = self.log.masked(&left.summary);
            self.steps.ended(number, conclusion.as_str(), &summary);
        }
        // On GitHub a hook is a step of its own, which no file has.
        if let Task::Hook(..) = task {
            self.log.summarize(&left.summary);
        }
    }

    /// What a step has of its own, if its condition is met.
    fn ready(&self, task: &Task, step: &Step) -> Result<Option<Own>> {
        let order = self.cancel.get();
        let last_hook = matches!(task, Task::Hook("completed", _));
        if order.is_some_and(|order| order.shutdown) && !last_hook {
            return Ok(None);
        }
        let outer = self.contexts(&self.known.env);
        let mut env = self.known.env.clone();
        env.extend(render_all(&step.env, &outer)?);
        let contexts = self.contexts(&env);
        let written = match task {
            Task::Step(_, Stage::Main) => {
                step.r#if.as_ref().map_or("", |written| written.0.as_str())
            }
            Task::StartContainers | Task::Hold => "success()",
            Task::Hook(..) | Task::StopContainers | Task::Step(..) => "always()",
        };
        let scope = Scope::new(&contexts);
        let met = |status| workflow_file::condition(Some(written), &scope.status(status));
        if !met(self.known.status)? {
            return Ok(None);
        }
        let minutes = step
            .timeout_minutes
            .as_ref()
            .map_or("", |minutes| &minutes.0);
        let minutes = render(minutes, &contexts)?;
        let ends = Stop {
            // Nothing stops the last hook.
            cancel: if last_hook {
                Cancel::default()
            } else {
                self.cancel.clone()
            },
            // What begins in a job that stops already is not stopped by that.
            unless_shutdown: self.known.status == Status::Cancelled || met(Status::Cancelled)?,
            deadline: minutes
                .parse::<f64>()
                .ok()
                .filter(|minutes| *minutes > 0.0)
                .map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0)),
        };
        Ok(Some(Own {
            env,
            contexts,
            stop: ends,
            files: Files::create(&self.place)?,
            minutes,
            title: step.title(),
        }))
    }

    /// Takes what a task left in its files.
    fn finish(
        &mut self,
        task: &Task,
        own: &Own,
        outcome: Result<Outcome>,
        left: &mut Left,
    ) -> Outcome {
        let mut outcome = outcome.unwrap_or_else(|error| self.failed(&error));
        let files = own.files.read();
        for error in &files.errors {
            self.log.error(error);
        }
        if (self.commands.failed || !files.errors.is_empty()) && outcome == Outcome::Success {
            outcome = Outcome::Failure;
        }
        self.known.env.extend(files.env);
        for folder in files.path {
            self.known.prepend(folder);
        }
        let outputs = std::mem::take(&mut self.commands.outputs)
            .into_iter()
            .chain(files.outputs);
        left.outputs = outputs.map(|(name, value)| (name, value.into())).collect();
        left.summary = files.summary;
        let state = std::mem::take(&mut self.commands.state)
            .into_iter()
            .chain(files.state);
        if let Task::Step(index, _) = task {
            self.states.entry(*index).or_default().extend(state);
        }
        outcome
    }

    fn failed(&self, error: &anyhow::Error) -> Outcome {
        self.log.error(&format!("{error:#}"));
        Outcome::Failure
    }

    /// What the job goes on with.
    fn concluded(&self, step: &Step, outcome: Outcome) -> Outcome {
        let Some(written) = step
            .continue_on_error
            .as_ref()
            .filter(|_| outcome == Outcome::Failure)
        else {
            return outcome;
        };
        match render(&written.0, &self.contexts(&self.known.env)) {
            Ok(value) if value == "true" => Outcome::Success,
            Ok(_) => outcome,
            Err(error) => self.failed(&error),
        }
    }

    fn look_for_cancel(&mut self) {
        if self.cancel.get().is_some() {
            self.known.status = Status::Cancelled;
        }
    }

    /// The step of the file that a task belongs to.
    pub(crate) fn step(&self, task: &Task) -> Option<&'a Step> {
        match task {
            Task::Step(index, _) => self.job.job.steps.get(*index),
            _ => None,
        }
    }

    fn contexts(&self, env: &Environment) -> Value {
        contexts(self.job, &self.place, &self.known, env)
    }
}

/// What a step leaves to others.
#[derive(Debug, Default)]
struct Left {
    outputs: Map<String, Value>,
    summary: String,
}

/// A value with the expressions in all its texts replaced.
fn rendered(value: Value, contexts: &Value) -> Result<Value> {
    Ok(match value {
        Value::String(text) => render(&text, contexts)?.into(),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| rendered(item, contexts));
            Value::Array(items.collect::<Result<_>>()?)
        }
        Value::Object(entries) => {
            let entries = entries
                .into_iter()
                .map(|(key, value)| Ok((key, rendered(value, contexts)?)));
            Value::Object(entries.collect::<Result<_>>()?)
        }
        other => other,
    })
}

#[cfg(test)]
mod tests;
