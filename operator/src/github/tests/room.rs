//! What servers can make the operator keep, and what that costs others: nothing.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::time::{advance, pause, resume, timeout};

use super::scale_sets::connection;
use super::stub::{NOW, Stub, here, page, raw, reply, runner};
use crate::github::{Client, Clients, Deletion, QueuedJob, Repository};

const MIB: usize = 1024 * 1024;

/// The page that a path asks for.
fn number(path: &str) -> usize {
    path.rsplit_once("&page=").unwrap().1.parse().unwrap()
}

/// A server of a repository with one run, with this page of its jobs, of so many.
async fn queue(total: usize, jobs: impl Fn(usize) -> Vec<Value> + Send + 'static) -> Stub {
    Stub::start(move |seen, _| {
        if seen.path.contains("/jobs") {
            let jobs = jobs(number(&seen.path));
            return reply(200, &json!({"total_count": total, "jobs": jobs}));
        }
        let runs = if seen.path.contains("status=queued") {
            vec![json!({"id": 7})]
        } else {
            vec![]
        };
        reply(
            200,
            &json!({"total_count": runs.len(), "workflow_runs": runs}),
        )
    })
    .await
}

fn size(jobs: &[QueuedJob]) -> usize {
    jobs.iter().map(QueuedJob::size).sum()
}

#[tokio::test]
async fn queues_without_measure_are_cut_short_and_leave_room_to_others() {
    // Given a server with 3,000 jobs that wait, each with labels of 40 KiB
    let absurd: Vec<Value> = (0..100)
        .map(|id| {
            let labels: Vec<String> = (0..40)
                .map(|label| format!("{id}-{label}-").repeat(250)[..1000].to_owned())
                .collect();
            json!({"id": id, "name": "absurd", "status": "queued", "labels": labels})
        })
        .collect();
    let hostile = queue(3_000, move |_| absurd.clone()).await;
    let clients = Clients::new(here());

    // When it is named as many repositories, then what is kept of each is little, and of all of them together
    let mut kept = vec![];
    for number in 0..10 {
        let client = hostile.client_of(&clients, "hostile", "t", &format!("o/r{number}"));
        if let Ok(Some(jobs)) = client.repository_jobs(NOW).await {
            assert!(size(&jobs.waiting) <= 2 * MIB, "{}", size(&jobs.waiting));
            assert!(jobs.waiting.len() > 10);
            kept.push((client, jobs));
        }
    }
    let all: usize = kept.iter().map(|(_, jobs)| size(&jobs.waiting)).sum();
    assert!((6 * MIB..=8 * MIB).contains(&all), "{all}");
    assert!(hostile.seen().len() < 30, "one page is enough");

    // And another namespace's 3,000 jobs are all known, beside another version of them that somebody still looks at
    let usual = |page: usize| {
        let ids = (page - 1) * 100..page * 100;
        ids.map(|id| {
            json!({
                "id": id, "status": "queued", "created_at": "2026-11-30T05:00:00Z",
                "name": format!("build / test (ubuntu-24.04, stable, shard {id} of 3000)"),
                "workflow_name": "Continuous integration",
                "labels": ["self-hosted", "linux", "x64", "cuda", "a100"],
            })
        })
        .collect()
    };
    let honest = queue(3_000, usual).await;
    let client = honest.client_of(&clients, "honest", "t", "o/r");
    let first = client.repository_jobs(NOW).await.unwrap().unwrap();
    assert_eq!(first.waiting.len(), 3_000);
    let again = client.repository_jobs(NOW).await.unwrap().unwrap();
    assert!(
        std::sync::Arc::ptr_eq(&first.waiting, &again.waiting),
        "what is the same is kept once"
    );
}

#[tokio::test]
async fn lists_without_measure_leave_room_to_the_lists_of_others() {
    // Given a server that lists 600 runners, whose pages are as long as pages can be, and never change
    let hostile = Stub::start(|seen, _| {
        if seen.header("if-none-match").is_some() {
            return raw(304, "");
        }
        let runners: Vec<Value> = (0..100)
            .map(|number| {
                let id = number + 100 * super::room::number(&seen.path) as u64;
                let labels: Vec<Value> = (0..5)
                    .map(|label| json!({"name": format!("{id}-{label}-").repeat(250)[..1000]}))
                    .collect();
                json!({"id": id, "name": format!("r{id}"), "status": "online", "labels": labels})
            })
            .collect();
        let mut page = page(600, &runners);
        page["padding"] = json!("x".repeat(3 * MIB));
        reply(200, &page).with("etag", "\"same\"")
    })
    .await;
    let clients = Clients::new(here());
    // And pools of one namespace that name it in as many ways as they like
    let mut kept = vec![];
    for number in 0..12 {
        let token = format!("token-{}", number / 2);
        let owner = format!("o/r{}", number % 2);
        let client = hostile.client_of(&clients, "hostile", &token, &owner);
        client.list_runners(NOW).await.unwrap();
        kept.push(client);
    }

    // When another namespace has ten thousand runners with usual labels, each time other ones
    let honest = Stub::start(|seen, before| {
        let number = number(&seen.path);
        let runners: Vec<Value> = ((number - 1) * 100..number * 100)
            .map(|id| {
                let mut runner = runner(id as u64, &format!("pool-{before}-{id}"), "online", true);
                for label in ["linux", "x64", "cudarunner.dev/pool=ci.gpu-a100"] {
                    let labels = runner["labels"].as_array_mut().unwrap();
                    labels.push(json!({"id": 9, "name": label, "type": "custom"}));
                }
                runner
            })
            .collect();
        reply(200, &page(10_000, &runners)).with("etag", "\"other\"")
    })
    .await;
    let client = honest.client_of(&clients, "honest", "t", "o");

    // Then all of them are known, again and again, and each is found
    for _ in 0..2 {
        let listed = client.list_runners(NOW).await.unwrap();
        assert!(listed.is_whole);
        assert_eq!(listed.runners.len(), 10_000);
        assert_eq!(listed.labels.len(), 1);
    }
    assert!(client.find_runner("none").await.unwrap().is_none());
}

#[tokio::test]
async fn of_a_list_that_takes_too_much_memory_only_those_that_are_named_are_read() {
    // Given few runners with very many labels
    let many: Vec<Value> = (0..200)
        .map(|label| json!({"name": format!("{label:04}").repeat(100)}))
        .collect();
    let stub = Stub::start(move |seen, before| {
        let named = |id: u64| json!({"id": id, "name": format!("r{id}"), "labels": many});
        if let Some((_, name)) = seen.path.split_once("?name=r") {
            let id = name.split_once('&').unwrap().0.parse().unwrap();
            return reply(200, &page(1, &[named(id)]));
        }
        let runners: Vec<Value> = (0..20)
            .map(|number| {
                let mut runner = named(number + 100 * before as u64);
                runner["labels"][0]["name"] = json!(format!("{number} {before}"));
                runner
            })
            .collect();
        reply(200, &page(20_000, &runners))
    })
    .await;
    // When they are listed, then the reading ends early, and the list is none
    let client = stub.client("o");
    let listed = client.list_runners(NOW).await.unwrap();
    assert!(!listed.is_whole && listed.runners.is_empty());
    assert!(stub.seen().len() < 5, "{}", stub.seen().len());
    // And who is named is found
    let names = ["r1".to_owned(), "r2".to_owned()].into();
    let listed = client.list_runners_of(&names, NOW).await.unwrap();
    assert_eq!(listed.runners.len(), 2);
}

#[tokio::test]
async fn a_token_or_a_tag_of_absurd_length_is_not_kept() {
    let stub = Stub::start(|seen, _| {
        assert_eq!(seen.header("if-none-match"), None);
        if seen.path.ends_with("/registration-token") {
            return reply(201, &json!({"token": "x".repeat(200 * 1024)}));
        }
        let tag = format!("\"{}\"", "x".repeat(1000));
        reply(200, &page(0, &[])).with("etag", &tag)
    })
    .await;
    let client = stub.client("o/r");
    for _ in 0..2 {
        assert!(client.list_runners(NOW).await.unwrap().is_whole);
    }
    let failed = client.registration_token().await.unwrap_err();
    assert_eq!(failed.category(), "Malformed");
}

#[tokio::test]
async fn answers_that_are_read_no_more_make_place_for_those_that_are() {
    // Given a server whose answers have tags, and more of them than are kept
    let stub = Stub::start(|seen, _| {
        if seen.header("if-none-match").is_some() {
            return raw(304, "");
        }
        let id: u64 = seen.path.rsplit_once('/').unwrap().1.parse().unwrap();
        let run = json!({
            "id": id, "html_url": "https://github.com/o/r/actions/runs/1",
            "created_at": "2026-11-30T05:00:00Z", "padding": "x".repeat(MIB),
        });
        reply(200, &run).with("etag", "\"same\"")
    })
    .await;
    let client = stub.client("o/r");
    let repository = Repository::new("o/r").unwrap();
    let read = async |id: u64| {
        let run = client.run(&repository, id).await.unwrap();
        assert_eq!(run.unwrap().id, id);
        let last = stub.seen().pop().unwrap();
        last.header("if-none-match").is_some()
    };
    for id in 0..6 {
        assert!(!read(id).await);
    }
    // Then those that are read again and again stay, and another one does not take their place
    for _ in 0..2 {
        assert!(read(0).await && !read(5).await);
    }
    // When all but one are read no more for a while
    for _ in 0..2 {
        pause();
        advance(Duration::from_mins(10)).await;
        resume();
        assert!(read(0).await);
    }
    // Then there is place for others beside that one
    assert!(!read(5).await);
    assert!(read(5).await && read(0).await);
}

/// Removes thirty runners at once: each as gone, and soon.
async fn remove<F: Future<Output = Deletion>>(each: impl FnMut(u64) -> F) {
    let all = timeout(Duration::from_secs(15), join_all((0..30).map(each)));
    let all = all.await.expect("one waits for another");
    assert!(all.iter().all(|done| *done == Deletion::Gone), "{all:?}");
}

#[tokio::test]
async fn who_needs_another_answer_holds_no_place_meanwhile() {
    // Given a server whose refusals are of unknown length, and which first takes back each request's token
    let mut seen_before = HashSet::new();
    let stub = Stub::start(move |seen, _| {
        if seen.path.ends_with("/registration-token") {
            return reply(201, &json!({"token": "AREG"})).streamed();
        }
        if seen.path.ends_with("/actions/runner-registration") {
            return connection(seen).streamed();
        }
        let is_service = seen.path.contains("/tenant/");
        match seen.method {
            Method::DELETE if is_service && seen_before.insert(seen.path.clone()) => raw(401, "no"),
            Method::DELETE => raw(404, "nothing"),
            _ if is_service => reply(200, &json!({"value": []})),
            _ => reply(200, &page(0, &[])),
        }
        .streamed()
    })
    .await;
    let client: &Client = &stub.client("o/r");
    // When many runners are removed, and a list is to prove that they are gone, then no one waits for another
    remove(async |id| client.delete_runner(id).await.unwrap()).await;
    remove(async |id| client.delete_agent(id).await.unwrap()).await;
}
