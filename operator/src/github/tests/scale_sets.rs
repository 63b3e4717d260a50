//! Scale sets, their runners and their queues, by way of the Actions service.

use http::Method;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::stub::{NOW, Reply, Seen, Stub, error, hang_up, raw, reply};
use crate::github::{Deletion, Error, JobOf, Message, NewScaleSet, Queued, QueuedJob, Statistics};

const TOKEN: &str = "POST /registration-token";
const CONNECT: &str = "POST /actions/runner-registration";

/// Answers the way to the service itself, and what comes then by `script`.
pub(crate) async fn service(mut script: impl FnMut(&str, usize) -> Reply + Send + 'static) -> Stub {
    let mut asked = 0;
    Stub::start(move |seen, _| {
        let line = line(seen);
        match line.as_str() {
            TOKEN => reply(
                201,
                &json!({"token": "AREG", "expires_at": "2030-01-01T00:00:00Z"}),
            ),
            CONNECT => connection(seen),
            _ => {
                asked += 1;
                script(&line, asked - 1)
            }
        }
    })
    .await
}

pub(super) fn connection(seen: &Seen) -> Reply {
    assert_eq!(seen.header("authorization"), Some("RemoteAuth AREG"));
    assert_eq!(seen.body["runner_event"], "register");
    let host = seen.header("host").unwrap();
    // {"exp": 4102444800}, in the year 2100
    let token = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln";
    reply(
        200,
        &json!({"url": format!("https://{host}/tenant/1/"), "token": token}),
    )
}

fn line(seen: &Seen) -> String {
    let path = seen
        .path
        .trim_start_matches("/api/v3")
        .trim_start_matches("/tenant/1/_apis");
    let path = path
        .split_once("/actions/runners")
        .map_or(path, |(_, rest)| rest);
    format!(
        "{} {}",
        seen.method,
        path.replace("?api-version=6.0-preview", "?")
    )
}

fn lines(stub: &Stub) -> Vec<String> {
    stub.seen().iter().map(line).collect()
}

fn exception(status: u16, name: &str) -> Reply {
    let name = format!("GitHub.Actions.Runtime.WebApi.{name}Exception, GitHub");
    reply(status, &json!({"typeName": name, "message": "as it says."}))
}

fn set(id: u64, labels: &[&str]) -> Value {
    let labels: Vec<Value> = labels
        .iter()
        .map(|l| json!({"type": "System", "name": l}))
        .collect();
    json!({"id": id, "name": "pool-1", "runnerGroupId": 1, "labels": labels, "RunnerSetting": {"disableUpdate": true}})
}

fn new() -> NewScaleSet {
    NewScaleSet {
        name: "pool-1".to_owned(),
        group: None,
        labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
    }
}

#[tokio::test]
async fn one_that_was_to_be_in_a_group_that_is_gone_was_not_made() {
    let groups = json!({"total_count": 1, "runner_groups": [{"id": 1, "name": "Default"}]});
    let stub = Stub::start(move |_, _| reply(200, &groups)).await;
    let client = stub.client("o");
    let found = client.find_intended("pool-1", Some("gone")).await;
    assert_eq!(found, Ok(None));
    let found = client.find_scale_set("pool-1", Some("gone")).await;
    assert!(matches!(found, Err(Error::NotFound { .. })), "{found:?}");
    // Nor in a repository, which has none
    let found = stub
        .client("o/r")
        .find_intended("pool-1", Some("gone"))
        .await;
    assert_eq!(found, Ok(None));
}

#[tokio::test]
async fn the_way_to_the_service_is_made_once() {
    let stub = service(|line, _| match line {
        "GET /runtime/runnerscalesets?&runnerGroupId=1&name=pool-1" => {
            raw(200, "\u{feff}{\"count\":0,\"value\":[]}")
        }
        "POST /runtime/runnerscalesets?" => reply(200, &set(7, &["self-hosted", "cuda"])),
        _ => error(418, line),
    })
    .await;
    let client = stub.client("o/r");
    assert_eq!(client.find_scale_set("pool-1", None).await, Ok(None));
    let made = client.create_scale_set(&new()).await.unwrap();
    assert_eq!((made.id, made.labels.len()), (7, 2));
    assert_eq!(
        lines(&stub),
        [
            TOKEN,
            CONNECT,
            "GET /runtime/runnerscalesets?&runnerGroupId=1&name=pool-1",
            "POST /runtime/runnerscalesets?"
        ]
    );
    let sent = stub.seen().pop().unwrap();
    assert_eq!(
        sent.body["labels"][1],
        json!({"name": "cuda", "type": "System"})
    );
    assert_eq!(sent.body["RunnerSetting"]["disableUpdate"], true);
    assert!(
        sent.header("authorization")
            .unwrap()
            .starts_with("Bearer e30.")
    );
}

#[tokio::test]
async fn a_token_that_was_taken_back_is_made_anew_once() {
    let stub = service(|_, asked| match asked {
        0 => exception(401, "Unauthorized"),
        _ => reply(200, &set(7, &[])),
    })
    .await;
    stub.client("o/r").scale_set(7).await.unwrap().unwrap();
    let get = "GET /runtime/runnerscalesets/7?";
    assert_eq!(lines(&stub), [TOKEN, CONNECT, get, TOKEN, CONNECT, get]);

    let stub = service(|_, _| exception(401, "Unauthorized")).await;
    let refused = stub.client("o/r").scale_set(7).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }), "{refused}");
    assert_eq!(lines(&stub).len(), 6);
}

#[tokio::test]
async fn a_runner_whose_answer_was_lost_is_removed_and_made_anew() {
    let runner = json!({"id": 9, "name": "pool-aaaaa", "runnerScaleSetId": 7});
    let stub = service(move |line, asked| match (line, asked) {
        ("POST /runtime/runnerscalesets/7/generatejitconfig?", 0) => hang_up(),
        ("GET /distributedtask/pools/0/agents?&agentName=pool-aaaaa", _) => {
            reply(200, &json!({"count": 1, "value": [runner]}))
        }
        ("DELETE /distributedtask/pools/0/agents/9?", _) => reply(204, &Value::Null),
        ("POST /runtime/runnerscalesets/7/generatejitconfig?", _) => reply(
            200,
            &json!({"runner": runner, "encodedJITConfig": "c2VjcmV0"}),
        ),
        (line, _) => error(418, line),
    })
    .await;
    let client = stub.client("o/r");
    let config = client
        .scale_set_runner(7, "pool-aaaaa", "_work")
        .await
        .unwrap();
    assert_eq!(
        (config.runner_id, config.encoded.expose_secret()),
        (9, "c2VjcmV0")
    );
    let agents = client.agents_of(7, NOW).await;
    agents.unwrap_err();
}

#[tokio::test]
async fn a_runner_with_a_job_stays_and_one_that_is_gone_is_no_error() {
    for (answer, outcome) in [
        (exception(400, "JobStillRunning"), Deletion::Busy),
        (exception(404, "AgentNotFound"), Deletion::Gone),
        (reply(204, &Value::Null), Deletion::Deleted),
    ] {
        let mut answer = Some(answer);
        let stub = service(move |_, _| answer.take().unwrap()).await;
        assert_eq!(stub.client("o/r").delete_agent(9).await, Ok(outcome));
    }
}

#[tokio::test]
async fn a_limit_on_the_way_to_the_service_is_no_missing_permission() {
    for (status, words, headers) in [
        (
            403,
            "API rate limit exceeded for installation",
            ("x-ratelimit-remaining", "0"),
        ),
        (
            403,
            "You have exceeded a secondary rate limit",
            ("retry-after", "40"),
        ),
        (429, "Too many requests", ("retry-after", "40")),
    ] {
        let stub = Stub::start(move |seen, _| {
            if seen.path.ends_with("/registration-token") {
                return reply(
                    201,
                    &json!({"token": "AREG", "expires_at": "2030-01-01T00:00:00Z"}),
                );
            }
            error(status, words).with(headers.0, headers.1)
        })
        .await;
        let limited = stub.client("o/r").scale_set(7).await.unwrap_err();
        assert_eq!(limited.category(), "RateLimited", "{limited}");
        assert_eq!(stub.seen().len(), 2, "and it is not asked again at once");
    }
}

#[tokio::test]
async fn what_the_broker_says_in_its_own_fields_is_told() {
    let stub = service(|_, _| {
        let kind = "RunnerScaleSetNotFound";
        reply(
            400,
            &json!({"source": "broker", "errorKind": kind, "errorMessage": "as it says"}),
        )
    })
    .await;
    let client = stub.client("o/r");
    client.delete_scale_set(7).await.unwrap();
    let refused = client.create_scale_set(&new()).await.unwrap_err();
    assert!(refused.to_string().contains("as it says"), "{refused}");
}

#[tokio::test]
async fn not_found_is_no_proof_that_a_set_or_a_runner_is_gone() {
    // A gateway's answer, not the service's; and the runner is listed
    let stub = service(|line, _| match line {
        line if line.starts_with("GET") => {
            reply(200, &json!({"count": 1, "value": [{"id": 3, "name": "a"}]}))
        }
        _ => raw(404, "<html>Not Found</html>"),
    })
    .await;
    let client = stub.client("o/r");
    assert_eq!(
        client.delete_scale_set(7).await.unwrap_err().category(),
        "NotFound"
    );
    assert_eq!(
        client.delete_agent(3).await.unwrap_err().category(),
        "NotFound"
    );
    assert_eq!(client.delete_agent(4).await, Ok(Deletion::Gone));
}

fn session(host: &str) -> Value {
    json!({
        "sessionId": "5e551014",
        "ownerName": "me",
        "messageQueueUrl": format!("https://{host}/tenant/1/message?sessionId=5e551014"),
        "messageQueueAccessToken": "QUEUE",
        "statistics": {"totalAvailableJobs": 2, "totalAssignedJobs": 3, "totalRunningJobs": 1}
    })
}

#[tokio::test]
#[expect(
    clippy::too_many_lines,
    reason = "one table: what each request answers"
)]
async fn messages_are_numbers_and_names_and_are_acknowledged() {
    let jobs = json!([
        {"messageType": "JobAvailable", "runnerRequestId": 41, "queueTime": "2026-03-02T08:00:00Z", "jobDisplayName": "train\u{1b}[2J",
            "workflowRunId": 16, "ownerName": "o", "repositoryName": "r", "requestLabels": ["cuda", 7],
            "jobWorkflowRef": "o/r/.github/workflows/ci.yml@refs/heads/main"},
        {"messageType": "JobCompleted", "runnerName": "pool-aaaaa", "result": "succeeded"},
        {"messageType": "JobAssigned", "runnerRequestId": 42, "queueTime": "0001-01-01T00:00:00", "runnerName": null, "jobDisplayName": "test", "workflowRunId": 17},
        {"messageType": "JobStarted", "runnerRequestId": 43, "runnerName": "pool-bbbbb", "jobDisplayName": "test", "workflowRunId": 17,
            "ownerName": "o", "repositoryName": "r"},
        {"messageType": "JobCompleted", "runnerName": "", "result": "canceled"},
        {"messageType": "SomethingNew"}
    ]);
    let (tell, reported) = std::sync::mpsc::channel::<String>();
    let stub = service(move |line, asked| match (line, asked) {
        ("POST /runtime/runnerscalesets/7/sessions?", _) => reply(200, &session(&reported.recv().unwrap())),
        ("GET /tenant/1/message?sessionId=5e551014", 1) => reply(
            200,
            &json!({
                "messageId": 5, "messageType": "RunnerScaleSetJobMessages", "body": jobs.to_string(),
                "statistics": {"totalAssignedJobs": 2}
            }),
        ),
        ("DELETE /tenant/1/message/5?sessionId=5e551014", _) => reply(204, &Value::Null),
        ("GET /tenant/1/message?sessionId=5e551014&lastMessageId=5", 3) => raw(202, ""),
        ("GET /tenant/1/message?sessionId=5e551014&lastMessageId=5", 4) => raw(200, ""),
        ("GET /tenant/1/message?sessionId=5e551014&lastMessageId=5", _) => {
            reply(200, &json!({"messageId": 6, "body": "no JSON"}))
        }
        (line, _) => error(418, line),
    })
    .await;
    tell.send(stub.address().to_owned()).unwrap();
    let client = stub.client("o/r");
    let session = client.open_session(7, "me").await.unwrap();
    let opened = Statistics {
        available: 2,
        assigned: 3,
        running: 1,
    };
    assert_eq!(session.statistics, Some(opened));

    let message = client.next_message(&session, 0, 4).await.unwrap().unwrap();
    let expected = Message {
        length: message.length,
        id: 5,
        statistics: Some(Statistics {
            assigned: 2,
            ..Statistics::default()
        }),
        available: vec![41],
        completed: vec!["pool-aaaaa".to_owned()],
        jobs: vec![JobOf {
            runner: "pool-bbbbb".to_owned(),
            name: "test".to_owned(),
            run: 17,
            repository: "o/r".to_owned(),
        }],
        queued: vec![
            (41, Queued::Available(Timestamp::constant(1_772_438_400, 0))),
            (0, Queued::Over),
            (43, Queued::Over),
            (0, Queued::Over),
        ],
        waiting: vec![(
            41,
            QueuedJob {
                id: None,
                run: 16,
                name: "train[2J".to_owned(),
                workflow: Some("ci.yml".to_owned()),
                repository: Some("o/r".to_owned()),
                labels: vec!["cuda".to_owned()],
                created_at: Some(Timestamp::constant(1_772_438_400, 0)),
            },
        )],
    };
    assert_eq!(message, expected);
    let poll = stub.seen().pop().unwrap();
    assert_eq!(poll.header("x-scalesetmaxcapacity"), Some("4"));
    assert_eq!(poll.header("authorization"), Some("Bearer QUEUE"));
    client.acknowledge(&session, 5).await.unwrap();
    assert_eq!(client.next_message(&session, 5, 4).await, Ok(None));
    assert_eq!(
        client.next_message(&session, 5, 4).await,
        Ok(None),
        "an empty body"
    );
    let unread = client.next_message(&session, 5, 4).await.unwrap().unwrap();
    assert_eq!(unread.id, 6, "one that cannot be read can be acknowledged");
    assert_eq!(stub.seen()[2].method, Method::POST);
}
