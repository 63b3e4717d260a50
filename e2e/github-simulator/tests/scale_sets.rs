//! The service of runner scale sets over a real TLS socket.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "what is missing in a test makes it fail"
)]

mod common;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use common::{REPO, Reply, Simulator};
use github_simulator::{
    control::NewJob,
    faults::{Action, Fault},
    fixtures::TENSOR_WASM,
};
use serde_json::{Value, json};

const SETS: &str = "_apis/runtime/runnerscalesets";
const AGENTS: &str = "_apis/distributedtask/pools/0/agents";

/// The service as a client of one scope sees it.
struct Service<'a> {
    github: &'a Simulator,
    token: String,
}

/// A session as its listener knows it.
struct Listener {
    id: String,
    url: String,
    token: String,
    opened: Value,
}

fn path_of(github: &Simulator, url: &str) -> String {
    url.strip_prefix(&github.url).unwrap().to_owned()
}

async fn registration_token(github: &Simulator, scope: &str) -> String {
    let admin = github.admin().await;
    let path = format!("{scope}/actions/runners/registration-token");
    let made = github.send("POST", &path, &admin, None).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.body["token"].as_str().unwrap().to_owned()
}

async fn connect(github: &Simulator, prefix: &str, token: &str, url: &str) -> Reply {
    let path = format!("{prefix}/actions/runner-registration");
    let authorization = format!("RemoteAuth {token}");
    let body = json!({"url": url, "runner_event": "register"});
    let headers = [("authorization", authorization.as_str())];
    github
        .send_with("POST", &path, "", Some(body), &headers)
        .await
}

impl<'a> Service<'a> {
    /// Quick polls, and a client for the repository of the fixtures.
    async fn of_repository(github: &'a Simulator) -> Self {
        let quick = json!({"messageWaitSeconds": 1});
        github.control.change_settings(&quick).await.unwrap();
        Self::new(github, REPO, TENSOR_WASM).await
    }

    async fn new(github: &'a Simulator, scope: &str, name: &str) -> Self {
        let token = registration_token(github, scope).await;
        let url = format!("{}/{name}", github.url);
        let made = connect(github, "/api/v3", &token, &url).await;
        assert_eq!(made.status, 200, "{made:?}");
        assert_eq!(made.body["url"], format!("{}/tenant/1/", github.url));
        let token = made.body["token"].as_str().unwrap().to_owned();
        Self { github, token }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = format!("/tenant/1/{path}{mark}api-version=6.0-preview");
        self.github.send(method, &path, &self.token, body).await
    }

    async fn create(&self, name: &str, labels: &[&str]) -> u64 {
        let labels: Vec<Value> = labels.iter().map(|name| json!({"name": name})).collect();
        let body = json!({
            "name": name,
            "runnerGroupId": 1,
            "labels": labels,
            "RunnerSetting": {"disableUpdate": true},
        });
        let made = self.send("POST", SETS, Some(body)).await;
        assert_eq!(made.status, 200, "{made:?}");
        made.body["id"].as_u64().unwrap()
    }

    async fn listen(&self, set: u64) -> Listener {
        let body = json!({
            "sessionId": "00000000-0000-0000-0000-000000000000",
            "ownerName": "test",
        });
        let path = format!("{SETS}/{set}/sessions");
        let opened = self.send("POST", &path, Some(body)).await;
        assert_eq!(opened.status, 200, "{opened:?}");
        let text = |name: &str| opened.body[name].as_str().unwrap().to_owned();
        Listener {
            id: text("sessionId"),
            url: path_of(self.github, &text("messageQueueUrl")),
            token: text("messageQueueAccessToken"),
            opened: opened.body.clone(),
        }
    }

    async fn poll(&self, listener: &Listener, last: u64, capacity: u32) -> Reply {
        let path = match last {
            0 => listener.url.clone(),
            _ => format!("{}&lastMessageId={last}", listener.url),
        };
        let capacity = capacity.to_string();
        let headers = [("x-scalesetmaxcapacity", capacity.as_str())];
        self.github
            .send_with("GET", &path, &listener.token, None, &headers)
            .await
    }

    async fn acknowledge(&self, listener: &Listener, id: u64) -> Reply {
        let path = listener
            .url
            .replace("/message?", &format!("/message/{id}?"));
        self.github
            .send("DELETE", &path, &listener.token, None)
            .await
    }

    async fn jit(&self, set: u64, name: &str) -> Reply {
        let path = format!("{SETS}/{set}/generatejitconfig");
        let body = json!({"name": name, "workFolder": ""});
        self.send("POST", &path, Some(body)).await
    }
}

async fn queue(github: &Simulator, labels: &[&str]) -> u64 {
    let new = NewJob {
        repository: TENSOR_WASM.to_owned(),
        name: "test".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..NewJob::default()
    };
    github.control.queue(&new).await.unwrap().jobs[0]
}

fn assert_error(reply: &Reply, status: u16, name: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    let kind = reply.body["typeName"].as_str().unwrap();
    assert!(kind.contains(name), "{reply:?}");
    assert!(!reply.message().is_empty(), "{reply:?}");
}

fn changes(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.body["messageType"], "RunnerScaleSetJobMessages");
    serde_json::from_str(reply.body["body"].as_str().unwrap()).unwrap()
}

/// The secret in a JIT configuration.
fn secret(jit: &Reply) -> String {
    let decode = |text: &Value| -> Value {
        serde_json::from_slice(&STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap()
    };
    let files = decode(&jit.body["encodedJITConfig"]);
    decode(&files[".credentials_rsaparams"])["d"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Starts an agent that picks up the job that it is given.
async fn start(github: &Simulator, secret: &str) -> u64 {
    let version = json!({"version": "2.335.0"});
    let opened = github
        .send("POST", "/_agent/sessions", secret, Some(version))
        .await;
    let session = opened.body["sessionId"].as_str().unwrap();
    let path = format!("/_agent/sessions/{session}/message?wait=5");
    let offer = github.send("GET", &path, secret, None).await;
    let job = offer.body["jobId"].as_u64().unwrap();
    let path = format!("/_agent/jobs/{job}/acquire");
    let acquired = github.send("POST", &path, secret, None).await;
    assert_eq!(acquired.status, 200, "{acquired:?}");
    job
}

async fn assert_found(service: &Service<'_>, set: u64, name: &str) {
    let path = format!("{SETS}?runnerGroupId=1&name={name}");
    let found = service.send("GET", &path, None).await;
    let text = found.text.strip_prefix('\u{feff}').unwrap();
    let found: Value = serde_json::from_str(text).unwrap();
    assert_eq!(found["count"], 1);
    assert_eq!(found["value"][0]["id"], set);
    assert_eq!(found["value"][0]["RunnerSetting"]["disableUpdate"], true);
    assert_eq!(
        found["value"][0]["labels"][2],
        json!({"type": "System", "name": "cuda"})
    );
}

/// The session goes once, then the set.
async fn remove(service: &Service<'_>, set: u64, session: &str) {
    let session = format!("{SETS}/{set}/sessions/{session}");
    assert_eq!(service.send("DELETE", &session, None).await.status, 204);
    let again = service.send("DELETE", &session, None).await;
    assert_error(&again, 400, "RunnerScaleSetSessionExpiredException");
    let one = format!("{SETS}/{set}");
    assert_eq!(service.send("DELETE", &one, None).await.status, 204);
    let gone = service.send("GET", &one, None).await;
    assert_error(&gone, 404, "RunnerScaleSetNotFoundException");
}

#[tokio::test]
async fn a_scale_set_lives() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let first = queue(&github, &["self-hosted", "cuda"]).await;
    queue(&github, &["cuda"]).await;
    let before = github.control.state().await.unwrap().lasting;
    let labels = ["gpu-set", "self-hosted", "cuda"];
    let set = service.create("gpu-set", &labels).await;
    assert_found(&service, set, "gpu-set").await;

    let listener = service.listen(set).await;
    assert_eq!(listener.opened["statistics"]["totalAvailableJobs"], 2);
    assert_eq!(listener.opened["runnerScaleSet"]["name"], "gpu-set");
    let message = service.poll(&listener, 0, 1).await;
    let reported = changes(&message);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0]["messageType"], "JobAssigned");
    assert_eq!(reported[0]["runnerRequestId"], first);
    assert_eq!(reported[0]["requestLabels"], json!(["self-hosted", "cuda"]));
    assert_eq!(message.body["statistics"]["totalAssignedJobs"], 1);
    assert_eq!(message.body["statistics"]["totalAvailableJobs"], 1);
    let id = message.body["messageId"].as_u64().unwrap();
    assert_eq!(id, 1);

    let jit = service.jit(set, "gpu-set-a").await;
    assert_eq!(jit.status, 200, "{jit:?}");
    assert_eq!(jit.body["runner"]["runnerScaleSetId"], set);
    assert_eq!(service.acknowledge(&listener, id).await.status, 204);
    assert_eq!(
        service.acknowledge(&listener, id).await.status,
        204,
        "twice"
    );
    let secret = secret(&jit);
    assert_eq!(start(&github, &secret).await, first);
    let reported = changes(&service.poll(&listener, id, 1).await);
    assert_eq!(reported[0]["messageType"], "JobStarted");
    assert_eq!(reported[0]["runnerName"], "gpu-set-a");

    let agent = format!("{AGENTS}/{}", jit.body["runner"]["id"]);
    let refused = service.send("DELETE", &agent, None).await;
    assert_error(&refused, 400, "JobStillRunningException");
    let path = format!("/_agent/jobs/{first}/complete");
    let done = json!({"conclusion": "success"});
    let done = github.send("POST", &path, &secret, Some(done)).await;
    assert_eq!(done.status, 204, "{done:?}");
    let gone = service.send("GET", &agent, None).await;
    assert_error(&gone, 404, "AgentNotFoundException");
    let reported = changes(&service.poll(&listener, 2, 1).await);
    assert_eq!(reported[0]["messageType"], "JobCompleted");
    assert_eq!(reported[0]["result"], "succeeded");
    assert_eq!(
        reported[1]["messageType"], "JobAssigned",
        "there is room again"
    );

    let view = &github.control.scale_sets().await.unwrap()[0];
    assert_eq!((view.id, view.capacity, view.unacknowledged), (set, 1, 2));
    assert_eq!(view.session.as_ref(), Some(&listener.id));
    assert_ne!(github.control.state().await.unwrap().lasting, before);
    remove(&service, set, &listener.id).await;
    assert_eq!(github.control.state().await.unwrap().lasting, before);
    github.assert_clean().await;
}

#[tokio::test]
async fn only_a_good_registration_token_opens_the_service() {
    let github = Simulator::start().await;
    let url = format!("{}/{TENSOR_WASM}", github.url);
    let token = registration_token(&github, REPO).await;
    let elsewhere = format!("{}/craton-co", github.url);
    assert_eq!(connect(&github, "", "A00", &url).await.status, 401);
    assert_eq!(connect(&github, "", &token, &elsewhere).await.status, 404);
    let nowhere = format!("{}/nobody", github.url);
    assert_eq!(connect(&github, "", &token, &nowhere).await.status, 404);
    let made = connect(&github, "", &token, &url).await;
    assert_eq!(made.status, 200, "{made:?}");
    let claims = made.body["token"].as_str().unwrap().split('.').nth(1);
    let claims = URL_SAFE_NO_PAD.decode(claims.unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let left = claims["exp"].as_i64().unwrap() - jiff::Timestamp::now().as_second();
    assert!((3590..=3600).contains(&left), "{left}");
    github.control.advance(3601).await.unwrap();
    assert_eq!(connect(&github, "", &token, &url).await.status, 401);
    let seen = github.control.requests(0).await.unwrap();
    let last = seen.last().unwrap();
    assert_eq!(
        last.operation_id.as_deref(),
        Some("scale-sets/admin-connection")
    );
    assert!(last.counted);
    assert!(seen.iter().all(|seen| !seen.credential.contains(&token)));
    github.assert_clean().await;
}

#[tokio::test]
async fn names_are_taken_once() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let set = service.create("gpu", &[]).await;
    let again = json!({"name": "GPU", "runnerGroupId": 1});
    let again = service.send("POST", SETS, Some(again)).await;
    assert_error(&again, 400, "RunnerScaleSetExistsException");
    let other = service.create("other", &[]).await;
    let rename = json!({"name": "gpu"});
    let path = format!("{SETS}/{other}");
    let refused = service.send("PATCH", &path, Some(rename)).await;
    assert_error(&refused, 400, "RunnerScaleSetExistsException");
    let change = json!({"name": "third", "RunnerSetting": {"disableUpdate": true}});
    let changed = service.send("PATCH", &path, Some(change)).await;
    assert_eq!(changed.body["name"], "third");
    assert_eq!(changed.body["RunnerSetting"]["disableUpdate"], true);

    assert_eq!(service.jit(set, "gpu-a").await.status, 200);
    let taken = service.jit(other, "gpu-a").await;
    assert_error(&taken, 409, "AgentExistsException");
    let path = format!("{AGENTS}?agentName=gpu-a");
    let found = service.send("GET", &path, None).await;
    assert_eq!(found.body["count"], 1);
    assert_eq!(found.body["value"][0]["runnerScaleSetId"], set);
    let agent = format!("{AGENTS}/{}", found.body["value"][0]["id"]);
    assert_eq!(service.send("DELETE", &agent, None).await.status, 204);
    let groups = "_apis/runtime/runnergroups/?groupName=default";
    let groups = service.send("GET", groups, None).await;
    assert_eq!(groups.body["value"][0]["id"], 1);
    assert_eq!(groups.body["value"][0]["isDefaultGroup"], true);
}

#[tokio::test]
async fn older_servers_drop_labels() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let older = json!({"honourLabels": false});
    github.control.change_settings(&older).await.unwrap();
    let set = service.create("gpu", &["gpu", "cuda"]).await;
    let path = format!("{SETS}/{set}");
    let shown = service.send("GET", &path, None).await;
    assert_eq!(
        shown.body["labels"],
        json!([{"type": "System", "name": "gpu"}])
    );
}

#[tokio::test]
async fn a_set_has_one_session_at_a_time() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let set = service.create("gpu", &[]).await;
    let listener = service.listen(set).await;
    let path = format!("{SETS}/{set}/sessions");
    let body = json!({"ownerName": "other"});
    let refused = service.send("POST", &path, Some(body)).await;
    assert_error(&refused, 409, "RunnerScaleSetSessionConflictException");
    assert_eq!(service.poll(&listener, 0, 1).await.status, 202);
    github.control.end_session(set).await.unwrap();
    let ended = service.poll(&listener, 0, 1).await;
    assert_error(&ended, 400, "RunnerScaleSetSessionExpiredException");
    let listener = service.listen(set).await;
    github.control.advance(121).await.unwrap();
    let later = service.listen(set).await;
    assert_ne!(later.id, listener.id, "the silent one is over");
    let former = format!("{path}/{}", listener.id);
    for method in ["PATCH", "DELETE"] {
        let over = service.send(method, &former, None).await;
        assert_error(&over, 400, "RunnerScaleSetSessionExpiredException");
    }
    github.control.delete_scale_set(set).await.unwrap();
    let gone = service.poll(&later, 0, 1).await;
    assert_error(&gone, 404, "RunnerScaleSetNotFoundException");
}

#[tokio::test]
async fn the_token_of_a_queue_expires_and_is_renewed() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let short = json!({"queueTokenSeconds": 60});
    github.control.change_settings(&short).await.unwrap();
    let set = service.create("gpu", &[]).await;
    let mut listener = service.listen(set).await;
    assert_eq!(service.poll(&listener, 0, 1).await.status, 202);
    github.control.advance(61).await.unwrap();
    assert_eq!(service.poll(&listener, 0, 1).await.status, 401);
    assert_eq!(service.acknowledge(&listener, 0).await.status, 401);
    let path = format!("{SETS}/{set}/sessions/{}", listener.id);
    let renewed = service.send("PATCH", &path, None).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_eq!(renewed.body["sessionId"], listener.id);
    renewed.body["messageQueueAccessToken"]
        .as_str()
        .unwrap()
        .clone_into(&mut listener.token);
    assert_eq!(service.poll(&listener, 0, 1).await.status, 202);
    github.control.advance(3600).await.unwrap();
    assert_eq!(service.send("GET", SETS, None).await.status, 401);
}

#[tokio::test]
async fn a_message_comes_until_it_is_acknowledged() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let set = service.create("gpu", &[]).await;
    let listener = service.listen(set).await;
    queue(&github, &["gpu"]).await;
    let lost = Fault {
        operation_id: Some("scale-sets/get-message".to_owned()),
        times: Some(1),
        action: Action::DropAfter,
        ..Fault::default()
    };
    github.control.inject(&lost).await.unwrap();
    let headers = [("user-agent", "test"), ("x-scalesetmaxcapacity", "1")];
    let bearer = format!("Bearer {}", listener.token);
    let headers = [headers[0], headers[1], ("authorization", bearer.as_str())];
    let lost = github
        .control
        .send(http::Method::GET, &listener.url, &headers, None)
        .await;
    assert!(lost.is_err(), "{lost:?}");
    let first = service.poll(&listener, 0, 1).await;
    assert_eq!(first.body["messageId"], 1, "{first:?}");
    assert_eq!(service.poll(&listener, 1, 1).await.status, 202);
    let again = service.poll(&listener, 0, 1).await;
    assert_eq!(again.body["messageId"], 1);
    assert_eq!(changes(&first), changes(&again));
    assert_eq!(service.acknowledge(&listener, 1).await.status, 204);
    assert_eq!(service.poll(&listener, 0, 1).await.status, 202);
    assert_eq!(service.acknowledge(&listener, 7).await.status, 404);
    let seen = github.control.requests(0).await.unwrap();
    let polls: Vec<_> = seen
        .iter()
        .filter(|seen| seen.operation_id.as_deref() == Some("scale-sets/get-message"))
        .collect();
    assert_eq!(polls.len(), 5);
    assert_eq!(polls[0].status, None);
    assert_eq!(polls[0].credential, "listener:gpu");
    assert!(polls.iter().all(|seen| !seen.counted));
    github.assert_clean().await;
}

#[tokio::test]
async fn a_poll_ends_as_soon_as_there_is_something_to_tell() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let slow = json!({"messageWaitSeconds": 20});
    github.control.change_settings(&slow).await.unwrap();
    let set = service.create("gpu", &[]).await;
    let listener = service.listen(set).await;
    let (message, job) = tokio::join!(service.poll(&listener, 0, 1), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        queue(&github, &["gpu"]).await
    });
    assert_eq!(changes(&message)[0]["runnerRequestId"], job);
    let (ended, ()) = tokio::join!(service.poll(&listener, 1, 1), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        github.control.end_session(set).await.unwrap();
    });
    assert_error(&ended, 400, "RunnerScaleSetSessionExpiredException");
}

#[tokio::test]
async fn offered_jobs_are_acquired_with_the_token_of_the_queue() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let former = json!({"scaleSetsOffer": true});
    github.control.change_settings(&former).await.unwrap();
    let set = service.create("gpu", &[]).await;
    let acquirable = format!("{SETS}/{set}/acquirablejobs");
    assert_eq!(service.send("GET", &acquirable, None).await.status, 204);
    let listener = service.listen(set).await;
    let job = queue(&github, &["gpu"]).await;
    let listed = service.send("GET", &acquirable, None).await;
    assert_eq!(listed.body["value"][0]["runnerRequestId"], job);
    let reported = changes(&service.poll(&listener, 0, 1).await);
    assert_eq!(reported[0]["messageType"], "JobAvailable");
    let url = path_of(&github, reported[0]["acquireJobUrl"].as_str().unwrap());
    let asked = Some(json!([job, 1]));
    let refused = github
        .send("POST", &url, &service.token, asked.clone())
        .await;
    assert_eq!(refused.status, 401);
    let acquired = github.send("POST", &url, &listener.token, asked).await;
    assert_eq!(acquired.body, json!({"count": 1, "value": [job]}));
    let reported = changes(&service.poll(&listener, 1, 1).await);
    assert_eq!(reported[0]["messageType"], "JobAssigned");
}

#[tokio::test]
async fn scopes_do_not_see_each_other() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let owner = Service::new(&github, "/orgs/craton-co", "craton-co").await;
    let set = service.create("gpu", &[]).await;
    let runner = service.jit(set, "gpu-a").await.body["runner"]["id"].clone();
    let path = format!("{SETS}/{set}");
    for method in ["GET", "DELETE"] {
        let hidden = owner.send(method, &path, None).await;
        assert_error(&hidden, 404, "RunnerScaleSetNotFoundException");
    }
    let hidden = owner.jit(set, "gpu-b").await;
    assert_error(&hidden, 404, "RunnerScaleSetNotFoundException");
    let hidden = owner.send("GET", &format!("{AGENTS}/{runner}"), None).await;
    assert_error(&hidden, 404, "AgentNotFoundException");
    let listed = owner.send("GET", SETS, None).await;
    assert!(listed.text.contains("\"count\":0"), "{listed:?}");
    owner.create("gpu", &[]).await;
    let unversioned = format!("/tenant/1/{path}");
    let unversioned = github.send("GET", &unversioned, &owner.token, None).await;
    assert_error(&unversioned, 400, "VssVersionNotSpecifiedException");
    assert_eq!(owner.send("GET", "_apis/unknown", None).await.status, 404);
}

#[tokio::test]
async fn a_poll_keeps_its_session_until_the_listener_hangs_up() {
    let github = Simulator::start().await;
    let service = Service::of_repository(&github).await;
    let slow = json!({"messageWaitSeconds": 20});
    github.control.change_settings(&slow).await.unwrap();
    let set = service.create("gpu", &[]).await;
    let listener = service.listen(set).await;
    let session = async || {
        github.control.scale_sets().await.unwrap()[0]
            .session
            .clone()
    };
    {
        let poll = service.poll(&listener, 0, 1);
        let meanwhile = async {
            // The poll is there once its capacity is.
            while github.control.scale_sets().await.unwrap()[0].capacity != 1 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            github.control.advance(600).await.unwrap();
            session().await
        };
        tokio::select! {
            early = poll => unreachable!("{early:?}"),
            open = meanwhile => assert_eq!(open, Some(listener.id.clone())),
        }
    }
    // That the listener has hung up is seen a moment later, and the session's time begins then.
    for _ in 0..100 {
        github.control.advance(121).await.unwrap();
        if session().await.is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    unreachable!("the session is still there");
}
