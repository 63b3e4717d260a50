//! A job as its agent gets it: one for each row of the matrix. Its texts still have their expressions, which the agent
//! evaluates.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

use crate::{Ordered, Text};

/// A job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// Its key in the file, which is `GITHUB_JOB`.
    pub key: String,
    /// Its name, with the values of the matrix; the key where the file gives none.
    pub name: String,
    /// `runs-on`.
    pub runs_on: Vec<String>,
    /// Its row of the matrix.
    pub matrix: Map<String, Value>,
    /// `env` of the workflow, then that of the job.
    pub env: Vec<Ordered<Text>>,
    /// `defaults.run`, the workflow's and the job's together.
    pub defaults: RunDefaults,
    /// The container that its steps run in.
    pub container: Option<Container>,
    /// Containers beside it, in the order of the file.
    pub services: Vec<Service>,
    /// `timeout-minutes`.
    pub timeout_minutes: Option<Text>,
    /// Its steps.
    pub steps: Vec<Step>,
}

/// How commands run that do not say it themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct RunDefaults {
    /// `shell`.
    pub shell: Option<Text>,
    /// `working-directory`.
    pub working_directory: Option<Text>,
}

/// A step: a command, or an action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Step {
    /// Its name.
    pub name: Option<Text>,
    /// What other steps call it.
    pub id: Option<String>,
    /// When it runs.
    pub r#if: Option<Text>,
    /// A script.
    pub run: Option<String>,
    /// An action.
    pub uses: Option<String>,
    /// Inputs of the action.
    pub with: Ordered<Text>,
    /// What runs the script.
    pub shell: Option<Text>,
    /// Where the script runs.
    pub working_directory: Option<Text>,
    /// Its environment.
    pub env: Ordered<Text>,
    /// It fails after so long.
    pub timeout_minutes: Option<Text>,
    /// The job goes on when it failed.
    pub continue_on_error: Option<Text>,
}

impl Step {
    /// What the log and GitHub call it.
    #[must_use]
    pub fn title(&self) -> String {
        if let Some(Text(name)) = self.name.as_ref().filter(|name| !name.is_empty()) {
            return name.clone();
        }
        let what = self.uses.as_deref().or(self.run.as_deref());
        let first = what.unwrap_or_default().trim_start();
        format!("Run {}", first.lines().next().unwrap_or_default())
    }
}

/// A container of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Container {
    /// Its image.
    pub image: Text,
    /// What the registry asks for.
    pub credentials: Option<Credentials>,
    /// Its environment.
    pub env: Ordered<Text>,
    /// Ports, as `docker create -p` takes them.
    pub ports: Vec<Text>,
    /// Volumes, as `docker create -v` takes them.
    pub volumes: Vec<Text>,
    /// Further options of `docker create`.
    pub options: Option<Text>,
    /// What a service runs instead of the image's entry point.
    pub entrypoint: Option<Text>,
    /// What a service runs instead of the image's command.
    pub command: Option<Text>,
}

/// Name and password for a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Name.
    pub username: Text,
    /// Password.
    pub password: Text,
}

/// A container beside the job's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name on the network.
    pub name: String,
    /// The container.
    pub container: Container,
}

/// The long form of a container.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Long {
    image: Text,
    credentials: Option<Credentials>,
    env: Ordered<Text>,
    ports: Vec<Text>,
    volumes: Vec<Text>,
    options: Option<Text>,
    entrypoint: Option<Text>,
    command: Option<Text>,
}

struct ContainerVisitor;

impl<'de> Visitor<'de> for ContainerVisitor {
    type Value = Container;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an image, or a mapping with `image`")
    }

    fn visit_str<E: Error>(self, image: &str) -> Result<Container, E> {
        Ok(Container {
            image: image.into(),
            ..Container::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Container, A::Error> {
        let long = Long::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Container {
            image: long.image,
            credentials: long.credentials,
            env: long.env,
            ports: long.ports,
            volumes: long.volumes,
            options: long.options,
            entrypoint: long.entrypoint,
            command: long.command,
        })
    }
}

impl<'de> Deserialize<'de> for Container {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContainerVisitor)
    }
}
