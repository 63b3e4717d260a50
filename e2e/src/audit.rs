//! Requests to the API server, as its audit log has them.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    helm::{NAMESPACE, RELEASE},
    wait::wait_for,
};

/// An operator that has asked for nothing for so long has settled.
const QUIET: Duration = Duration::from_secs(10);

/// A request of the operator's.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it does: `create`, `delete`, `patch`, `watch`, …
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// Kind of object, in the plural, with the subresource.
    pub resource: String,
    /// Namespace of the object; none where all are asked for, or where it has none.
    pub namespace: Option<String>,
    /// Whether the operator had no right to it.
    pub forbidden: bool,
    /// The pod that sent it.
    pub pod: Option<String>,
}

impl Request {
    /// Whether it asks whose token that is.
    pub fn is_review(&self) -> bool {
        self.resource == "tokenreviews"
    }

    /// Whether it changes the image of a runner's container.
    pub fn is_image_change(&self) -> bool {
        self.verb == "patch" && self.resource == "pods"
    }

    /// Whether it reads the keys that tokens are signed with, or whose they are.
    pub fn is_of_keys(&self) -> bool {
        self.uri.starts_with("/openid/") || self.uri.starts_with("/.well-known/")
    }
}

/// Reads the log from some moment on.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    offset: u64,
}

impl Audit {
    /// From the start of the cluster.
    pub fn whole(cluster: &Cluster) -> Self {
        Self {
            path: cluster.dir.join("logs/audit.log"),
            offset: 0,
        }
    }

    /// From the requests that come after this.
    pub fn from_now(cluster: &Cluster) -> Result<Self> {
        let path = cluster.dir.join("logs/audit.log");
        let offset = path
            .metadata()
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        Ok(Self { path, offset })
    }

    /// The operator's requests since the last time. A watch is listed when it begins and when it ends.
    pub fn new_requests(&mut self) -> Result<Vec<Request>> {
        let mut file = File::open(&self.path)?;
        ensure!(
            file.metadata()?.len() >= self.offset,
            "the audit log was rotated"
        );
        file.seek(SeekFrom::Start(self.offset))?;
        let user = format!("system:serviceaccount:{NAMESPACE}:{RELEASE}");
        let mut requests = Vec::new();
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        // A line without an end is still being written.
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            self.offset += u64::try_from(line.len())?;
            let entry: Value = serde_json::from_str(&line)?;
            if entry["user"]["username"] == user.as_str() {
                requests.push(request(&entry));
            }
            line.clear();
        }
        Ok(requests)
    }

    /// The same without watches: they are long-lived and shared by all pools, and the server ends and we renew each every
    /// few minutes.
    pub fn new_calls(&mut self) -> Result<Vec<Request>> {
        let mut requests = self.new_requests()?;
        requests.retain(|request| request.verb != "watch");
        Ok(requests)
    }

    /// Waits until nothing was asked for ten seconds, and something else holds as well: there is nothing left to do. Gives
    /// what was asked until then, without watches.
    pub async fn settled(
        &mut self,
        limit: Duration,
        mut also: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<Vec<Request>> {
        let mut all = vec![];
        let mut last = Instant::now();
        let what = "the operator to have nothing left to do";
        wait_for(what, limit, async || {
            let new = self.new_calls()?;
            if !new.is_empty() {
                last = Instant::now();
            }
            all.extend(new);
            Ok((also().await? && last.elapsed() > QUIET).then_some(()))
        })
        .await?;
        Ok(all)
    }
}

fn request(entry: &Value) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &entry["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(sub) => format!("{}/{sub}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    let pod = &entry["user"]["extra"]["authentication.kubernetes.io/pod-name"][0];
    Request {
        verb: text(&entry["verb"]),
        uri: text(&entry["requestURI"]),
        resource,
        namespace: object["namespace"].as_str().map(str::to_owned),
        forbidden: entry["annotations"]["authorization.k8s.io/decision"] == "forbid",
        pod: pod.as_str().map(str::to_owned),
    }
}
