//! What a runner's pod and the registrar say to each other.
//!
//! Requests with `Authorization: Bearer`, each body at most [`MAX_BODY`] bytes:
//!
//! | request | by | bearer | body | 200 |
//! |---|---|---|---|---|
//! | `POST` [`TICKETS`] | `prepare` | the pod's token for [`AUDIENCE`] | none | [`Ticket`] |
//! | `POST` [`REPORTS`] | `gpu`, the gate | ticket | the whole [`Report`](crate::Report) | `{}`: the image is changed |
//! | `POST` [`REGISTRATIONS`] | the runner's image | ticket | `{}` | [`Registration`] |
//! | `POST` [`JOB_CONTAINER`] | `main`, the hook | job ticket | [`JobContainer`] | `{}`: the image is changed |
//! | `GET` [`JOB_CONTAINER`] | `main`, the hook | job ticket | none | [`JobContainerState`] |
//!
//! The last two are for pods whose jobs name their own image. There the report changes no image.
//!
//! Each may come again: an answer can be lost, and a gate that passed repeats its report until its image is changed.
//! The other answers:
//!
//! | status | body | who asked |
//! |---|---|---|
//! | 202 | none | the failing report was noted: ends with the report's class |
//! | 400 | [`Refusal`] | fault of ours: 70 |
//! | 401, 403 | [`Refusal`] | final: 15 |
//! | 429, 503 | [`Refusal`], `Retry-After` | tries again until its deadline, then 16 |

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Exchanges the pod's token for a [`Ticket`].
pub const TICKETS: &str = "/v1/tickets";
/// Takes the gate's report.
pub const REPORTS: &str = "/v1/reports";
/// Gives the registration.
pub const REGISTRATIONS: &str = "/v1/registrations";
/// Changes the image of `gpu` to a job's and starts its services; says how far they are.
pub const JOB_CONTAINER: &str = "/v1/job-container";
/// The audience that the pod's projected service-account token must have.
pub const AUDIENCE: &str = "cudarunner.dev/registrar";
/// The longest report, in bytes, that the registrar reads.
pub const MAX_BODY: usize = 256 * 1024;
/// The longest name of an image, in bytes.
pub const MAX_IMAGE: usize = 1024;
/// The most services of a job.
pub const MAX_SERVICES: usize = 10;

/// What a runner needs to register itself with GitHub. A secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Registration {
    /// A just-in-time configuration, for `run.sh --jitconfig`.
    #[serde(rename_all = "camelCase")]
    JitConfig {
        /// As GitHub gave it, base64.
        encoded_jit_config: String,
    },
    /// A registration token, for `config.sh`; its other arguments are no secret and stand in the pod.
    RegistrationToken {
        /// As GitHub gave it; valid for about an hour.
        token: String,
    },
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JitConfig { .. } => f.write_str("JitConfig(…)"),
            Self::RegistrationToken { .. } => f.write_str("RegistrationToken(…)"),
        }
    }
}

/// Stands for one pod at the registrar, for an hour. A secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// One word.
    pub ticket: String,
    /// Another one, good for [`JOB_CONTAINER`] alone and for the pod's life. Only a pod whose jobs name their own image has
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Whether the GPUs of the pod's node are shared with other pods, as far as the operator knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

/// What a job wants to run in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobContainer {
    /// As the workflow has it, at most [`MAX_IMAGE`] bytes.
    pub image: String,
    /// For the image's registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// At most [`MAX_SERVICES`], in the workflow's order.
    #[serde(default)]
    pub services: Vec<Service>,
}

impl JobContainer {
    /// What is wrong with it, as one sentence: what the registrar refuses, and the hook before it.
    pub fn check(&self) -> Result<(), String> {
        if self.services.len() > MAX_SERVICES {
            return Err(format!("A job may have at most {MAX_SERVICES} services."));
        }
        let services = self.services.iter().map(|service| &service.image);
        for image in [&self.image].into_iter().chain(services) {
            if !(1..=MAX_IMAGE).contains(&image.len())
                || !image.bytes().all(|b| b.is_ascii_graphic())
            {
                return Err(format!(
                    "An image must have a name of at most {MAX_IMAGE} characters, without spaces."
                ));
            }
        }
        Ok(())
    }
}

/// A service of a job. `Debug` shows no value of its environment: there may be secrets among them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// At most [`MAX_IMAGE`] bytes.
    pub image: String,
    /// For the image's registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Its environment, beside the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Instead of the image's entry point, where it is not empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Instead of the image's command, where it is not empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Instead of the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.env.keys().collect();
        f.debug_struct("Service")
            .field("image", &self.image)
            .field("env", &names)
            .finish_non_exhaustive()
    }
}

/// For a registry. A secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// As the workflow has it.
    pub username: String,
    /// As the workflow has it.
    pub password: String,
    /// The registry's address, from the image's name; `None` is Docker Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_url: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// How far a job's containers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobContainerState {
    /// The job's own.
    pub container: ContainerState,
    /// In the order of the request.
    #[serde(default)]
    pub services: Vec<ContainerState>,
}

/// How far a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all_fields = "camelCase")]
pub enum ContainerState {
    /// Its image is being pulled, or it is being started.
    Pulling,
    /// It runs.
    Running,
    /// It does not, and waiting will not help. Also a container that ran and ended, or was started again.
    Failed {
        /// Kubernetes' word, such as `ErrImagePull` or `OOMKilled`.
        reason: String,
        /// Kubernetes' sentence.
        message: String,
    },
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Why the registrar says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// One word in `PascalCase`, for machines.
    pub reason: String,
    /// One sentence, for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_tagged_and_never_printed() {
        let registration = Registration::JitConfig {
            encoded_jit_config: "c2VjcmV0".into(),
        };
        let json = serde_json::to_string(&registration).unwrap();
        assert_eq!(
            json,
            r#"{"kind":"JitConfig","encodedJitConfig":"c2VjcmV0"}"#
        );
        assert_eq!(
            serde_json::from_str::<Registration>(&json).unwrap(),
            registration
        );
        assert!(!format!("{registration:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn a_registration_token_is_never_printed() {
        let registration = Registration::RegistrationToken {
            token: "AABBCC".into(),
        };
        let json = serde_json::to_string(&registration).unwrap();
        assert_eq!(json, r#"{"kind":"RegistrationToken","token":"AABBCC"}"#);
        assert!(!format!("{registration:?}").contains("AABBCC"));
    }

    #[test]
    fn a_ticket_is_never_printed() {
        let json = r#"{"ticket":"AABBCC"}"#;
        let ticket: Ticket = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&ticket).unwrap(), json);
        assert!(!format!("{ticket:?}").contains("AABBCC"));
        // A pod of containers for jobs has two
        let json = r#"{"ticket":"AABBCC","job":"DDEEFF"}"#;
        let ticket: Ticket = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&ticket).unwrap(), json);
        assert!(!format!("{ticket:?}").contains("DDEEFF"));
    }

    fn job_container() -> JobContainer {
        let credentials = Credentials {
            username: "u".into(),
            password: "s3cret".into(),
            server_url: Some("ghcr.io".into()),
        };
        JobContainer {
            image: "ghcr.io/acme/cuda:1".into(),
            credentials: Some(credentials),
            services: vec![Service {
                image: "redis:7".into(),
                credentials: None,
                env: BTreeMap::from([("TOKEN".into(), "s3cret".into())]),
                command: vec![],
                args: vec![],
                working_dir: Some("/data".into()),
            }],
        }
    }

    #[test]
    fn a_jobs_container_is_asked_for_and_its_secrets_are_never_printed() {
        let wanted = job_container();
        let json = serde_json::to_string(&wanted).unwrap();
        assert_eq!(
            json,
            r#"{"image":"ghcr.io/acme/cuda:1","credentials":{"username":"u","password":"s3cret","serverUrl":"ghcr.io"},"services":[{"image":"redis:7","env":{"TOKEN":"s3cret"},"workingDir":"/data"}]}"#
        );
        assert_eq!(serde_json::from_str::<JobContainer>(&json).unwrap(), wanted);
        assert!(!format!("{wanted:?}").contains("s3cret"));
        let least: JobContainer = serde_json::from_str(r#"{"image":"a"}"#).unwrap();
        assert!(least.services.is_empty() && least.credentials.is_none());
    }

    #[test]
    fn a_jobs_container_has_bounds() {
        assert_eq!(job_container().check(), Ok(()));
        let many = JobContainer {
            services: vec![job_container().services[0].clone(); MAX_SERVICES + 1],
            ..job_container()
        };
        assert!(many.check().is_err());
        for image in ["", "two words", "a\nb", "ü", &"x".repeat(MAX_IMAGE + 1)] {
            let mut wanted = job_container();
            wanted.services[0].image = image.into();
            assert!(wanted.check().is_err(), "{image}");
            let wanted = JobContainer {
                image: image.into(),
                ..job_container()
            };
            assert!(wanted.check().is_err(), "{image}");
        }
    }

    #[test]
    fn how_far_a_container_is_is_tagged_and_open() {
        let json = r#"{"container":{"state":"Failed","reason":"ErrImagePull","message":"m"},"services":[{"state":"Running"},{"state":"Pulling"}]}"#;
        let state: JobContainerState = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&state).unwrap(), json);
        let newer: JobContainerState =
            serde_json::from_str(r#"{"container":{"state":"Paused"}}"#).unwrap();
        assert_eq!(newer.container, ContainerState::Unknown);
    }

    #[test]
    fn a_refusal_may_carry_more_than_we_know() {
        let refusal: Refusal =
            serde_json::from_str(r#"{"reason":"Draining","message":"m","since":1}"#).unwrap();
        assert_eq!(refusal.reason, "Draining");
    }
}
