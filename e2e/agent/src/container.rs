//! Containers of a job, as container hooks are told of them: fields and order after `HookInput.cs` and `ContainerInfo.cs`
//! of actions/runner at 258d6c85. Null is written, too.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::work::{Environment, Place, path};

/// What a hook gets on its standard input.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Input<'a> {
    pub(crate) command: &'static str,
    pub(crate) response_file: String,
    pub(crate) args: &'a Value,
    /// What a hook said last, null before.
    pub(crate) state: &'a Value,
}

/// What a hook may answer.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    pub(crate) state: Option<Map<String, Value>>,
    pub(crate) context: Option<Context>,
    pub(crate) is_alpine: Option<bool>,
}

/// What came of the containers.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Context {
    pub(crate) container: Option<Made>,
    #[serde(default = "none_made")]
    pub(crate) services: Option<Vec<Made>>,
}

/// A list that is absent is empty; one that is null is not.
#[expect(clippy::unnecessary_wraps, reason = "serde calls it")]
fn none_made() -> Option<Vec<Made>> {
    Some(Vec::new())
}

/// What came of one container.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Made {
    pub(crate) id: Option<String>,
    pub(crate) network: Option<String>,
    pub(crate) ports: Option<Map<String, Value>>,
}

/// A container as a hook is told of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub(crate) image: Option<String>,
    pub(crate) dockerfile: Option<String>,
    pub(crate) entry_point_args: Vec<String>,
    pub(crate) entry_point: Option<String>,
    pub(crate) working_directory: Option<String>,
    /// `options`, as written.
    pub(crate) create_options: Option<String>,
    pub(crate) registry: Option<Registry>,
    pub(crate) environment_variables: Environment,
    pub(crate) port_mappings: Vec<String>,
    pub(crate) system_mount_volumes: Vec<Mount>,
    pub(crate) user_mount_volumes: Vec<Mount>,
}

/// Where an image comes from, and what opens the door.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registry {
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) server_url: String,
}

/// A folder in a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mount {
    pub(crate) user_provided_value: Option<String>,
    pub(crate) source_volume_path: Option<String>,
    pub(crate) target_volume_path: String,
    pub(crate) read_only: bool,
}

impl Mount {
    /// One of the agent's own.
    pub(crate) fn system(source: &Path, target: &str) -> Self {
        Self {
            source_volume_path: Some(path(source)),
            target_volume_path: target.to_owned(),
            ..Self::default()
        }
    }

    /// One of the file: `source:target:ro`, and its shorter forms.
    pub(crate) fn user(written: &str) -> Self {
        let parts: Vec<&str> = written.split(':').collect();
        let is_ro = |mode: &str| mode.eq_ignore_ascii_case("ro");
        let (source, target, read_only) = match parts[..] {
            [source, target, mode] => (Some(source), target, is_ro(mode)),
            [target, mode] if is_ro(mode) => (None, target, true),
            [source, target] => (Some(source), target, false),
            _ => (None, written, false),
        };
        Self {
            user_provided_value: Some(written.to_owned()),
            source_volume_path: source.map(str::to_owned),
            target_volume_path: target.to_owned(),
            read_only,
        }
    }
}

/// The agent's folders, and where a container has them. The first that fits counts.
#[derive(Debug, Clone)]
pub(crate) struct Paths(Vec<(PathBuf, &'static str)>);

impl Paths {
    /// Those of a job's container.
    pub(crate) fn of_job(place: &Place) -> Self {
        Self(vec![
            (place.workflow.clone(), "/github/workflow"),
            (place.home.clone(), "/github/home"),
            (place.work.clone(), "/__w"),
            (place.tools.clone(), "/__t"),
            (place.externals.clone(), "/__e"),
        ])
    }

    /// Those of a Docker action.
    pub(crate) fn of_action(place: &Place) -> Self {
        Self(vec![
            (place.workspace.clone(), "/github/workspace"),
            (place.file_commands(), "/github/file_commands"),
            (place.workflow.clone(), "/github/workflow"),
            (place.home.clone(), "/github/home"),
            (place.temp.clone(), "/github/runner_temp"),
        ])
    }

    /// A path as the container has it; a text that is none of these paths stays.
    pub(crate) fn inside(&self, text: &str) -> String {
        for (own, theirs) in &self.0 {
            let rest = text.strip_prefix(&path(own));
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                return format!("{theirs}{rest}");
            }
        }
        text.to_owned()
    }

    /// The same for every value of an environment.
    pub(crate) fn environment(&self, environment: &Environment) -> Environment {
        environment
            .iter()
            .map(|(name, value)| (name.clone(), self.inside(value)))
            .collect()
    }
}

impl Container {
    /// A container of the file, whose texts have their values already.
    pub(crate) fn written(written: &workflow_file::Container, own: &Environment) -> Self {
        let text = |text: &workflow_file::Text| text.0.clone();
        let set = |text: &Option<workflow_file::Text>| text.as_ref().map(|text| text.0.clone());
        let image = written.image.0.clone();
        let registry = written
            .credentials
            .as_ref()
            .filter(|credentials| !credentials.username.is_empty())
            .map(|credentials| Registry {
                username: credentials.username.0.clone(),
                password: credentials.password.0.clone(),
                server_url: registry_of(&image).to_owned(),
            });
        let command = set(&written.command).unwrap_or_default();
        let variables = written.env.iter();
        let mut made = Self {
            image: Some(image),
            entry_point_args: command
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
            entry_point: set(&written.entrypoint),
            create_options: set(&written.options),
            registry,
            environment_variables: variables
                .map(|(name, value)| (name.to_owned(), value.0.clone()))
                .collect(),
            port_mappings: written.ports.iter().map(text).collect(),
            user_mount_volumes: written
                .volumes
                .iter()
                .map(|volume| Mount::user(&volume.0))
                .collect(),
            ..Self::default()
        };
        made.add_proxies(own);
        made
    }

    /// The agent's proxies are its containers', too.
    pub(crate) fn add_proxies(&mut self, own: &Environment) {
        for name in ["http_proxy", "https_proxy", "no_proxy"] {
            let upper = name.to_uppercase();
            let value = own.get(name).or_else(|| own.get(&upper));
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                for name in [name, &upper] {
                    let entry = self.environment_variables.entry(name.to_owned());
                    entry.or_insert_with(|| value.clone());
                }
            }
        }
    }

    /// What the agent adds for the container of the job.
    pub(crate) fn for_the_job(&mut self, place: &Place) {
        let paths = Paths::of_job(place);
        let socket = Path::new("/var/run/docker.sock");
        let mount = |folder: &Path| Mount::system(folder, &paths.inside(&path(folder)));
        self.system_mount_volumes = vec![
            Mount::system(socket, "/var/run/docker.sock"),
            mount(&place.work),
            Mount {
                read_only: true,
                ..mount(&place.externals)
            },
            mount(&place.temp),
            mount(&place.actions),
            mount(&place.tools),
            mount(&place.home),
            mount(&place.workflow),
        ];
        let variables = &mut self.environment_variables;
        variables.insert("HOME".to_owned(), "/github/home".to_owned());
        self.working_directory = Some(paths.inside(&path(&place.workspace)));
    }

    /// Images of GitHub's own registry are pulled with the job's token where the file gives no credentials.
    pub(crate) fn default_registry(&mut self, actor: &str, token: &str) {
        let server = registry_of(self.image.as_deref().unwrap_or_default()).to_lowercase();
        let own = ["ghcr.io", "containers.pkg.github.com"].contains(&server.as_str());
        if own && self.registry.is_none() {
            self.registry = Some(Registry {
                username: actor.to_owned(),
                password: token.to_owned(),
                server_url: server,
            });
        }
    }
}

/// The registry in an image's name; empty for Docker Hub.
fn registry_of(image: &str) -> &str {
    let parts: Vec<&str> = image.split('/').collect();
    match parts[..] {
        [host, _] if host.contains([':', '.']) => host,
        [host, _, _, ..] => host,
        _ => "",
    }
}

/// What the real agent says where it finds nothing: the words are .NET's.
pub(crate) const NULL: &str = "Object reference not set to an instance of an object.";

/// What `job.container` and `job.services` become, or why the answer cannot be used. The agent finds a service by its
/// position.
pub(crate) fn job_context(context: &Context, names: &[&str]) -> Result<(Value, Value), String> {
    let null = || NULL.to_owned();
    let mut container = Map::new();
    if let Some(made) = &context.container {
        for (key, value) in [("id", &made.id), ("network", &made.network)] {
            if let Some(value) = value {
                container.insert(key.to_owned(), json!(value));
            }
        }
    }
    let mut services = Map::new();
    for (index, made) in context
        .services
        .as_ref()
        .ok_or_else(null)?
        .iter()
        .enumerate()
    {
        let name = names.get(index).ok_or_else(|| {
            "Index was out of range. Must be non-negative and less than the size of the collection. (Parameter 'index')"
                .to_owned()
        })?;
        let ports = made.ports.as_ref().ok_or_else(null)?;
        let service = json!({"id": made.id, "network": made.network, "ports": ports});
        services.insert((*name).to_owned(), service);
    }
    Ok((container.into(), services.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_a_file() {
        let table = [
            ("data:/data", Some("data"), "/data", false),
            ("/src:/dst:ro", Some("/src"), "/dst", true),
            ("/src:/dst:rw", Some("/src"), "/dst", false),
            ("/cache", None, "/cache", false),
            ("/cache:RO", None, "/cache", true),
        ];
        for (written, source, target, read_only) in table {
            let mount = Mount::user(written);
            let seen = (
                mount.source_volume_path.as_deref(),
                mount.target_volume_path.as_str(),
                mount.read_only,
            );
            assert_eq!(seen, (source, target, read_only), "{written}");
            assert_eq!(mount.user_provided_value.as_deref(), Some(written));
        }
    }

    #[test]
    fn registries_of_images() {
        let table = [
            ("ubuntu", ""),
            ("acme/tool:1", ""),
            ("ghcr.io/tool", "ghcr.io"),
            ("localhost:5000/tool", "localhost:5000"),
            ("nvcr.io/nvidia/cuda:12", "nvcr.io"),
            ("registry/acme/tool", "registry"),
        ];
        for (image, registry) in table {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }

    #[test]
    fn an_image_of_github_is_pulled_with_the_jobs_token_unless_the_file_says_otherwise() {
        let table = [
            ("ghcr.io/acme/cuda:1", None, Some("octocat")),
            ("GHCR.io/acme/cuda:1", None, Some("octocat")),
            ("ghcr.io/acme/cuda:1", Some("own"), Some("own")),
            ("nvcr.io/nvidia/cuda", None, None),
            ("ubuntu", None, None),
        ];
        for (image, username, expected) in table {
            let written = workflow_file::Container {
                image: image.into(),
                credentials: username.map(|name| workflow_file::Credentials {
                    username: name.into(),
                    password: "p".into(),
                }),
                ..workflow_file::Container::default()
            };
            let mut made = Container::written(&written, &Environment::new());
            made.default_registry("octocat", "token");
            let name = made.registry.map(|registry| registry.username);
            assert_eq!(name.as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn proxies_are_the_containers_unless_it_has_its_own() {
        let own = Environment::from([("https_proxy".to_owned(), "http://p:1".to_owned())]);
        let mut container = Container::default();
        let variables = &mut container.environment_variables;
        variables.insert("HTTPS_PROXY".to_owned(), "http://q:2".to_owned());
        container.add_proxies(&own);
        let seen = json!(container.environment_variables);
        assert_eq!(
            seen,
            json!({"HTTPS_PROXY": "http://q:2", "https_proxy": "http://p:1"})
        );
    }

    #[test]
    fn answers_of_a_hook() {
        let table = [
            (json!({}), &["a"][..], Ok(json!([{}, {}]))),
            (
                json!({"container": {"id": "c", "network": "n"}, "services": [{"id": "s", "network": "n", "ports": {"80": "8080"}}]}),
                &["redis"],
                Ok(json!([
                    {"id": "c", "network": "n"},
                    {"redis": {"id": "s", "network": "n", "ports": {"80": "8080"}}},
                ])),
            ),
            (
                json!({"services": [{"id": "s"}]}),
                &["a"],
                Err("Object reference"),
            ),
            (json!({"services": null}), &[], Err("Object reference")),
            (
                json!({"services": [{"id": "s", "ports": {}}]}),
                &[],
                Err("Index was out of range"),
            ),
        ];
        for (answer, names, expected) in table {
            let context: Context = serde_json::from_value(answer.clone()).unwrap();
            let seen = job_context(&context, names)
                .map(|(container, services)| json!([container, services]));
            match (seen, expected) {
                (Ok(seen), Ok(expected)) => assert_eq!(seen, expected, "{answer}"),
                (Err(seen), Err(expected)) => assert!(seen.contains(expected), "{answer}: {seen}"),
                (seen, expected) => panic!("{answer}: {seen:?}, not {expected:?}"),
            }
        }
    }
}
