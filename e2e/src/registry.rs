//! Registries in a cluster: the real program, with TLS, from which the nodes pull. One has a password, one is for everybody.
//!
//! Each is started by the suite that needs it, and ends with its cluster. It listens on the node's address, so that it has
//! one name for nodes, pods and the machine; the nodes trust its authority, pods do not.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use rustix::process::Signal;
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use crate::{
    certs::{Certificates, secret},
    cluster::Cluster,
    images::{Images, Parts},
    node,
    report::Story,
    supervisor::{Program, Supervisor},
    tools,
    wait::wait_for,
};

/// The program, and its Debian package.
const PROGRAM: &str = "docker-registry";

/// What tells the two from each other.
#[derive(Debug)]
struct Kind {
    /// Its name among the cluster's programs, its log's and its folder's.
    name: &'static str,
    port: u16,
    /// Whether it asks for the password.
    has_user: bool,
}

const PRIVATE: Kind = Kind {
    name: "registry",
    port: 5000,
    has_user: true,
};
const PUBLIC: Kind = Kind {
    name: "public-registry",
    port: 5001,
    has_user: false,
};

/// The one user of the private one.
pub const USER: &str = "puller";
/// The password of the user.
pub const PASSWORD: &str = "not-for-everyone";
/// The password's hash, as `htpasswd -B` makes it, and as cheap as can be.
const HASH: &str = "$2b$04$cudaRunnerRegistry123u0Xi0RvuU1JayBHpSpgcYl0xNfcUiPf2";

/// The tag under which our images are put there.
const TAG: &str = "dev";

/// A running registry.
#[derive(Clone, Debug)]
pub struct Registry {
    /// `ADDRESS:PORT`, the first part of the names of its images.
    pub host: String,
    kind: &'static Kind,
    dir: PathBuf,
    supervisor: Supervisor,
}

/// A request that it has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// `GET`, `HEAD` and so on.
    pub method: String,
    /// Such as `/v2/job-cuda/manifests/dev`.
    pub path: String,
    /// The status; 401 where user or password were wrong or missing.
    pub status: u64,
    /// The program that asked, such as `containerd/2.3.7`.
    pub agent: String,
}

impl Registry {
    /// Starts the cluster's private registry, which is empty, or gives the one that runs.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        Self::of_kind(cluster, &PRIVATE).await
    }

    /// The same of the one that asks nobody who he is.
    pub async fn public(cluster: &Cluster) -> Result<Self> {
        Self::of_kind(cluster, &PUBLIC).await
    }

    async fn of_kind(cluster: &Cluster, kind: &'static Kind) -> Result<Self> {
        let link = cluster.link.as_ref();
        let address = link.context("only a real node pulls images")?.node;
        let registry = Self {
            host: format!("{address}:{}", kind.port),
            kind,
            dir: cluster.dir.join(kind.name),
            supervisor: cluster.supervisor.clone(),
        };
        if registry.supervisor.check(kind.name).is_err() {
            let unpacked =
                tokio::task::spawn_blocking(|| tools::unpacked(PROGRAM, &Story::silent()))
                    .await??;
            let program = Program::new(kind.name, unpacked.join("usr/bin").join(PROGRAM));
            let settings = registry.configure(address)?;
            node::trust(&cluster.dir, &registry.host, &registry.authority())?;
            registry.supervisor.start(
                program
                    .arg("serve")
                    .arg(settings.to_string_lossy().into_owned()),
            )?;
        }
        let what = "the registry to answer";
        wait_for(what, Duration::from_secs(20), async || {
            registry.supervisor.check(kind.name)?;
            let asked = registry.clone();
            tokio::task::spawn_blocking(move || Session::open(&asked)?.ready()).await?
        })
        .await?;
        Ok(registry)
    }

    /// Puts one of our images into it, under the same name; gives the name by which nodes pull it. [`images::LARGE`] has
    /// 3 GiB, which take a node their time.
    ///
    /// [`images::LARGE`]: crate::images::LARGE
    pub async fn push(&self, image: &str) -> Result<String> {
        let name = image.to_owned();
        let push = move |images: &Images, session: &mut Session, story: &Story| {
            session.push(&name, TAG, &images.parts(&name, story)?)
        };
        let done = self.send(push).await;
        done.with_context(|| format!("cannot push {image}"))?;
        Ok(self.image(image))
    }

    /// Puts one of our images into it in a list that has it for this architecture alone; gives the name by which nodes pull it.
    pub async fn push_for(&self, arch: &str, image: &str) -> Result<String> {
        let (name, tag) = (image.to_owned(), arch.to_owned());
        let push = move |images: &Images, session: &mut Session, story: &Story| {
            let parts = images.parts(&name, story)?;
            session.push(&name, TAG, &parts)?;
            session.push(&name, &tag, &parts.listed(&tag)?)
        };
        let done = self.send(push).await;
        done.with_context(|| format!("cannot push {image} for {arch}"))?;
        Ok(format!("{}/{image}:{arch}", self.host))
    }

    /// Puts images of ours into it, each under another name, as a release of this version. What they share is sent once.
    pub async fn push_release(&self, images: &[(&str, &str)], version: &str) -> Result<()> {
        let all: Vec<_> = images
            .iter()
            .map(|&(image, name)| (image.to_owned(), name.to_owned()))
            .collect();
        let version = version.to_owned();
        self.send(move |images, session, story| {
            all.iter().try_for_each(|(image, name)| {
                let parts = images.released(image, &version, story)?;
                let pushed = session.push(name, &version, &parts);
                pushed.with_context(|| format!("cannot push {image}"))
            })
        })
        .await
    }

    /// Sends it what is ours. Our images are held until all is sent: another tree may build others.
    async fn send(
        &self,
        work: impl FnOnce(&Images, &mut Session, &Story) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let registry = self.clone();
        tokio::task::spawn_blocking(move || {
            let story = Story::silent();
            let images = Images::open(&story)?;
            work(&images, &mut Session::open(&registry)?, &story)
        })
        .await?
    }

    /// The name by which nodes pull an image.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:{TAG}", self.host)
    }

    /// Makes a Secret for `imagePullSecrets`, with this password.
    pub async fn pull_secret(
        &self,
        client: &Client,
        namespace: &str,
        name: &str,
        password: &str,
    ) -> Result<()> {
        let logins = json!({"auths": {&self.host: {"username": USER, "password": password}}});
        let secret = json!({
            "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": logins.to_string()},
        });
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        secrets
            .create(&PostParams::default(), &serde_json::from_value(secret)?)
            .await?;
        Ok(())
    }

    /// From now on it takes connections and says nothing. A node gives up a pull after some 10 seconds, and tries again.
    pub fn hold(&self) -> Result<()> {
        self.supervisor.signal(self.kind.name, Signal::STOP)
    }

    /// From now on it answers again, what was asked meanwhile too.
    pub fn release(&self) -> Result<()> {
        self.supervisor.signal(self.kind.name, Signal::CONT)
    }

    /// What it has answered so far, refusals too, in this order.
    pub fn answered(&self) -> Result<Vec<Answered>> {
        let log = fs::read_to_string(self.supervisor.log(self.kind.name))?;
        Ok(log.lines().filter_map(answered).collect())
    }

    /// The file with the certificate of its authority.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Writes keys, password and settings; gives the file of the settings.
    fn configure(&self, address: Ipv4Addr) -> Result<PathBuf> {
        let certs = Certificates::create(&self.dir, "Registry")?;
        certs.server("server", &[], &[address.into()])?;
        secret(&self.dir.join("users"), &format!("{USER}:{HASH}\n"))?;
        // YAML, of which JSON is a part.
        let mut settings = json!({
            "version": "0.1",
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": self.dir.join("images")}},
            "http": {
                "addr": self.host,
                "tls": {"certificate": certs.path("server.crt"), "key": certs.path("server.key")},
            },
        });
        if self.kind.has_user {
            settings["auth"] =
                json!({"htpasswd": {"realm": "cluster", "path": self.dir.join("users")}});
        }
        let file = self.dir.join("settings.json");
        fs::write(&file, serde_json::to_vec_pretty(&settings)?)?;
        Ok(file)
    }
}

/// A line of its log, where that is about an answer. A refusal has a line of another kind, without a status.
fn answered(line: &str) -> Option<Answered> {
    let line: Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| line[field].as_str().unwrap_or_default();
    let status = match text("msg") {
        "response completed" => line["http.response.status"].as_u64()?,
        refused if refused.starts_with("error authorizing context") => 401,
        _ => return None,
    };
    Some(Answered {
        method: text("http.request.method").to_owned(),
        path: text("http.request.uri").to_owned(),
        status,
        agent: text("http.request.useragent").to_owned(),
    })
}

/// What its user asks it.
struct Session {
    http: Agent,
    url: String,
    authorization: String,
    /// The blobs that it has sent, each with the name under which it did.
    sent: BTreeMap<String, String>,
}

impl Session {
    fn open(registry: &Registry) -> Result<Self> {
        let authority = Certificate::from_pem(&fs::read(registry.authority())?)?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
            .root_certs(RootCerts::new_with_certs(&[authority]))
            .build();
        let http = Agent::config_builder().tls_config(tls).build().new_agent();
        Ok(Self {
            http,
            url: format!("https://{}/v2/", registry.host),
            authorization: format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}"))),
            sent: BTreeMap::new(),
        })
    }

    fn ready(&self) -> Result<Option<()>> {
        let ask = self.http.get(&self.url);
        ask.header("authorization", &self.authorization).call()?;
        Ok(Some(()))
    }

    fn push(&mut self, name: &str, tag: &str, image: &Parts) -> Result<()> {
        for (digest, file) in &image.blobs {
            self.blob(name, digest, file)?;
        }
        let url = format!("{}{name}/manifests/{tag}", self.url);
        self.http
            .put(url)
            .header("authorization", &self.authorization)
            .header("content-type", &image.media_type)
            .send(&image.manifest)?;
        Ok(())
    }

    fn blob(&mut self, name: &str, digest: &str, file: &Path) -> Result<()> {
        let known = self.sent.get(digest);
        let known = known.map(|other| format!("?mount={digest}&from={other}"));
        let begun = self
            .http
            .post(format!(
                "{}{name}/blobs/uploads/{}",
                self.url,
                known.unwrap_or_default()
            ))
            .header("authorization", &self.authorization)
            .send_empty()?;
        if begun.status() == 201 {
            return Ok(());
        }
        let location = begun.headers().get("location");
        let location = location.context("the registry names no place for a blob")?;
        let content =
            File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        let answer = self
            .http
            .put(format!("{}&digest={digest}", location.to_str()?))
            .header("authorization", &self.authorization)
            .send(content)?;
        ensure!(answer.status() == 201, "{digest}: {}", answer.status());
        self.sent.insert(digest.to_owned(), name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_pulled_is_read_from_its_log() {
        // Given its words for an answer, for a refusal, and for what is neither
        let request = r#""http.request.method":"HEAD","http.request.uri":"/v2/a/manifests/dev","http.request.useragent":"containerd/2.3.7""#;
        let end = r#""http.response.status":200,"level":"info","msg":"response completed""#;
        let no = r#""msg":"error authorizing context: basic authentication challenge for realm \"cluster\": invalid authorization credential""#;
        let begin = r#""level":"info","msg":"authorized request""#;

        // Then each request is read once
        let read = |rest: &str| answered(&format!("{{{request},{rest}}}"));
        let good = read(end).unwrap();
        assert_eq!(
            (good.method.as_str(), good.path.as_str(), good.status),
            ("HEAD", "/v2/a/manifests/dev", 200)
        );
        assert_eq!(good.agent, "containerd/2.3.7");
        assert_eq!(read(no).unwrap().status, 401);
        assert_eq!(read(begin), None);
        assert_eq!(answered("not JSON"), None);
    }
}
