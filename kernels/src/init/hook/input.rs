//! The agent's words, as its classes have them: `camelCase`, and nulls wherever nothing was said. Unknown fields are ignored.
//! No `Debug`: there are secrets in it.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Env;

/// What is on our input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Input {
    pub(super) command: Command,
    pub(super) response_file: Option<String>,
    #[serde(default)]
    pub(super) args: Value,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    PrepareJob,
    RunScriptStep,
    RunContainerStep,
    CleanupJob,
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
pub(super) struct PrepareArgs {
    /// Only services need none.
    pub(super) container: Option<Container>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) services: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StepArgs {
    pub(super) entry_point: String,
    /// One text, cut at every space.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) entry_point_args: Vec<String>,
    #[serde(default, deserialize_with = "nullable_values")]
    pub(super) environment_variables: Env,
    #[serde(default, deserialize_with = "list_or_text")]
    pub(super) prepend_path: Vec<String>,
    pub(super) working_directory: Option<String>,
}

/// The job's container or a service.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    #[serde(deserialize_with = "nullable")]
    pub(super) image: String,
    pub(super) entry_point: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) entry_point_args: Vec<String>,
    /// The text of `options:`.
    #[serde(deserialize_with = "nullable")]
    pub(super) create_options: String,
    pub(super) registry: Option<Registry>,
    #[serde(deserialize_with = "nullable_values")]
    pub(super) environment_variables: Env,
    #[serde(deserialize_with = "nullable")]
    pub(super) port_mappings: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) user_mount_volumes: Vec<Mount>,
    /// The agent's own. They are mounted by the pod.
    #[serde(deserialize_with = "nullable")]
    pub(super) system_mount_volumes: Vec<Mount>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Registry {
    #[serde(deserialize_with = "nullable")]
    pub(super) username: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) password: String,
    pub(super) server_url: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Mount {
    /// A folder, or the name of a volume; nothing in one that has no name.
    #[serde(deserialize_with = "nullable")]
    pub(super) source_volume_path: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) target_volume_path: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) read_only: bool,
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// A value that is null is empty.
fn nullable_values<'de, D: Deserializer<'de>>(value: D) -> Result<Env, D::Error> {
    let env: Option<std::collections::BTreeMap<String, Option<String>>> =
        Option::deserialize(value)?;
    let env = env.unwrap_or_default().into_iter();
    Ok(env
        .map(|(name, value)| (name, value.unwrap_or_default()))
        .collect())
}

/// Older agents write one text with colons.
fn list_or_text<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Option::deserialize(value)? {
        None => vec![],
        Some(Either::List(list)) => list,
        Some(Either::Text(text)) => text.split(':').map(Into::into).collect(),
    }
    .into_iter()
    .filter(|path| !path.is_empty())
    .collect())
}
