//! Webhooks of a repository.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/repos/webhooks?apiVersion=2022-11-28>.

use std::fmt;

use http::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::{Value, json};

use super::{
    Client, Error,
    ask::Ask,
    body::{AtMost, Short, short_or_none},
    pages::{Item, What},
};
use cuda_runner_plan::model::webhook::Hook;

/// What it takes, in GitHub's words.
const WEBHOOKS_WRITE: &str = "the repository permission \"Webhooks: write\"";
/// The one event.
const WORKFLOW_JOB: &str = "workflow_job";
/// More events GitHub does not have.
const MOST_EVENTS: usize = 200;

impl Client {
    /// The webhook of the repository that delivers to this address; `None` where there is none.
    pub async fn find_hook(&self, url: &str) -> Result<Option<Hook>, Error> {
        let path = format!("{}/hooks", self.url().owner_path());
        let what = What {
            action: "list the webhooks",
            permission: WEBHOOKS_WRITE,
        };
        let all: Vec<WireHook> = self.list(&path, &what).await?;
        let mut all = all.into_iter().map(WireHook::read);
        Ok(all.find(|hook| hook.url == url))
    }

    /// Makes a webhook. GitHub refuses a second one with the same address.
    pub async fn create_hook(&self, url: &str, secret: &SecretString) -> Result<(), Error> {
        let path = format!("{}/hooks", self.url().owner_path());
        let mut body = wanted(url, secret);
        body["name"] = json!("web");
        let ask = Ask {
            body: Some(body.to_string().into_bytes()),
            ..Ask::write(Method::POST, path, "make a webhook")
        };
        self.expect(&ask, StatusCode::CREATED).await
    }

    /// Makes a webhook what it should be.
    pub async fn update_hook(
        &self,
        id: u64,
        url: &str,
        secret: &SecretString,
    ) -> Result<(), Error> {
        let path = format!("{}/hooks/{id}", self.url().owner_path());
        let ask = Ask {
            body: Some(wanted(url, secret).to_string().into_bytes()),
            ..Ask::write(Method::PATCH, path, "change a webhook")
        };
        self.expect(&ask, StatusCode::OK).await
    }

    /// Removes a webhook; one that is gone already is removed, too.
    pub async fn delete_hook(&self, id: u64) -> Result<(), Error> {
        let path = format!("{}/hooks/{id}", self.url().owner_path());
        let ask = Ask::write(Method::DELETE, path, "remove a webhook");
        match self.expect(&ask, StatusCode::NO_CONTENT).await {
            Err(Error::NotFound { .. }) => Ok(()),
            done => done,
        }
    }

    /// What became of the last delivery, in GitHub's words, where it failed. GitHub follows no redirect, so
    /// whatever is not 2xx brought no event here.
    pub async fn last_failure(&self, hook: u64) -> Result<Option<String>, Error> {
        let path = format!(
            "{}/hooks/{hook}/deliveries?per_page=1",
            self.url().owner_path()
        );
        let what = What {
            action: "read the deliveries of a webhook",
            permission: WEBHOOKS_WRITE,
        };
        let last: Option<AtMost<Delivery, 1>> = self.ask_tagged(path, &what).await?;
        let last = last.and_then(|last| last.0.into_iter().next());
        // Below 200 is no answer, but one that is yet to come.
        let failed = last.filter(|last| last.status_code >= 300);
        Ok(failed.map(|last| {
            let word = last.status.unwrap_or_default();
            let word = gate_report::clean(&word, 100);
            format!("{} {word}", last.status_code)
        }))
    }

    async fn expect(&self, ask: &Ask, status: StatusCode) -> Result<(), Error> {
        let answer = self.transport.send(ask).await?;
        if answer.status == status {
            return Ok(());
        }
        Err(self.judged(&answer, ask, WEBHOOKS_WRITE))
    }
}

/// What a webhook is to be. The configuration is replaced as a whole, so the secret is in it each time.
fn wanted(url: &str, secret: &SecretString) -> Value {
    json!({
        "active": true,
        "events": [WORKFLOW_JOB],
        "config": {
            "url": url,
            "content_type": "json",
            "secret": secret.expose_secret(),
            "insecure_ssl": "0",
        },
    })
}

#[derive(Deserialize)]
struct WireHook {
    id: u64,
    #[serde(default)]
    active: bool,
    #[serde(default)]
    events: AtMost<Short, MOST_EVENTS>,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "short_or_none")]
    url: Option<String>,
    #[serde(default, deserialize_with = "short_or_none")]
    content_type: Option<String>,
    #[serde(default)]
    insecure_ssl: Flag,
}

/// A number, which some servers give as a text.
#[derive(Default, Eq, PartialEq)]
struct Flag(Option<u64>);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlagForm)
    }
}

struct FlagForm;

impl Visitor<'_> for FlagForm {
    type Value = Flag;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a text")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Flag, E> {
        Ok(Flag(Some(number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Flag, E> {
        Ok(Flag(text.parse().ok()))
    }

    fn visit_unit<E>(self) -> Result<Flag, E> {
        Ok(Flag::default())
    }
}

#[derive(Deserialize)]
struct Delivery {
    status_code: u16,
    #[serde(default, deserialize_with = "short_or_none")]
    status: Option<String>,
}

impl Item for WireHook {
    fn size(&self) -> usize {
        let events = self.events.0.iter();
        let each = events.map(|event| size_of::<Short>() + event.0.len());
        size_of::<Self>() + each.sum::<usize>()
    }
}

impl WireHook {
    fn read(self) -> Hook {
        let is_told = matches!(self.events.0.as_slice(), [event] if event.0 == WORKFLOW_JOB);
        let is_checked = self.config.insecure_ssl == Flag(Some(0));
        let is_json = self.config.content_type.as_deref() == Some("json");
        Hook {
            id: self.id,
            url: self.config.url.unwrap_or_default(),
            is_right: self.active && is_told && is_json && is_checked,
        }
    }
}
