//! Requests to the API server, as its audit log has them.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    helm::{NAMESPACE, RELEASE},
};

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
