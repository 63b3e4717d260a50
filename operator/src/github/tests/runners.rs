//! Listing, finding, removing.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::stub::{NOW, Stub, error, page, raw, reply, runner};
use crate::github::budget::{Cost, Ending};
use crate::github::{Deletion, Repository};

#[tokio::test]
async fn an_unchanged_listing_is_asked_for_with_its_tag_and_kept() {
    let stub = Stub::start(|_, before| match before {
        0 => reply(200, &page(1, &[runner(1, "a", "online", false)])).with("etag", "W/\"one\""),
        1 => raw(304, ""),
        _ => reply(200, &page(1, &[runner(2, "b", "offline", false)])).with("etag", "W/\"two\""),
    })
    .await;
    let client = stub.client("o/r");
    let first = client.list_runners(NOW).await.unwrap();
    let second = client.list_runners(NOW).await.unwrap();
    assert_eq!(first.runners, second.runners);
    assert!(second.at > first.at);
    assert_eq!(client.list_runners(NOW).await.unwrap().runners[0].name, "b");

    let tags: Vec<_> = stub
        .seen()
        .iter()
        .map(|seen| seen.header("if-none-match").map(str::to_owned))
        .collect();
    assert_eq!(
        tags,
        [None, Some("W/\"one\"".into()), Some("W/\"one\"".into())]
    );
    assert_eq!((client.usage().sent, client.usage().not_modified), (3, 1));
    let endings: Vec<_> = client.usage().endings.into_iter().collect();
    assert_eq!(
        endings,
        [
            ((Cost::Read, Ending::Done), 2),
            ((Cost::Read, Ending::NotModified), 1),
        ]
    );
}

#[tokio::test]
async fn a_young_listing_is_not_asked_for_and_pools_of_one_place_share_it() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let minute = Duration::from_mins(1);
    let pools: Vec<_> = (0..100).map(|_| stub.client("o/r")).collect();
    futures::future::join_all(pools.iter().map(|pool| pool.list_runners(minute))).await;
    assert_eq!(stub.seen().len(), 1, "a hundred pools cost one listing");
    pools[0].list_runners(NOW).await.unwrap();
    assert_eq!(stub.seen().len(), 2);
}

#[tokio::test]
async fn a_list_of_runners_without_an_end_is_given_up() {
    // Given a server that always has one more page, and says so page by page
    let stub = Stub::start(|_, before| {
        let id = u64::try_from(before).unwrap();
        let total = (before + 1) * 100 + 1;
        reply(200, &page(total, &[runner(id, "a", "offline", false)]))
    })
    .await;
    // When its runners are listed, then that is no list, and most of the minute's requests are left
    let listed = stub.client("o/r").list_runners(NOW).await.unwrap();
    assert!(!listed.is_whole && listed.runners.is_empty());
    assert_eq!(stub.seen().len(), 200);
}

#[tokio::test]
async fn of_a_scope_with_too_many_runners_only_those_that_are_named_are_read() {
    // Given an enterprise with 50,000 runners, two of them a pool's
    let stub = Stub::start(|seen, _| {
        let named = |id, name| page(1, &[runner(id, name, "online", false)]);
        let query = seen.path.split_once('?').unwrap().1;
        match query.split('&').next().unwrap() {
            "name=pool-a" => reply(200, &named(1, "pool-a")),
            "name=pool-b" => reply(200, &named(2, "pool-b")),
            "per_page=100" => reply(200, &page(50_000, &[runner(9, "other", "online", false)])),
            _ => reply(200, &page(0, &[])),
        }
    })
    .await;
    let client = stub.client("o");

    // When they are listed, then each is found by its name
    let names = BTreeSet::from(["pool-a", "pool-b", "pool-gone"].map(str::to_owned));
    let listed = client.list_runners_of(&names, NOW).await.unwrap();
    let ids: Vec<u64> = listed.runners.iter().map(|runner| runner.id).collect();
    assert_eq!((ids.as_slice(), listed.is_whole), (&[1, 2][..], false));
    assert_eq!(stub.seen().len(), 1 + names.len());

    // And an entry that is not found is not known to be gone
    let failed = client.delete_runner(7).await;
    assert!(failed.is_err(), "{failed:?}");
}

#[tokio::test]
async fn a_server_with_too_many_runners_that_finds_none_by_name_is_refused_at_once() {
    let many = page(1_000_000, &[runner(1, "a", "offline", false)]);
    let stub = Stub::start(move |_, _| reply(200, &many)).await;
    let names = BTreeSet::from(["a".to_owned()]);
    let failed = stub.client("o").list_runners_of(&names, NOW).await;
    assert_eq!(failed.unwrap_err().category(), "Malformed");
    assert_eq!(stub.seen().len(), 2);
}

#[tokio::test]
async fn all_pages_are_read_by_number_with_the_credentials_each() {
    let stub = Stub::start(|seen, _| {
        let number: usize = seen.path.rsplit_once("&page=").unwrap().1.parse().unwrap();
        let ids = (number - 1) * 100..(number * 100).min(250);
        let runners: Vec<Value> = ids
            .map(|id| runner(id as u64, &format!("r{id}"), "online", false))
            .collect();
        reply(200, &page(250, &runners))
            .with("link", "<https://elsewhere.example/page2>; rel=\"next\"")
    })
    .await;
    let listing = stub.client("o").list_runners(NOW).await.unwrap();
    assert_eq!(listing.runners.len(), 250);
    assert_eq!(
        stub.lines(),
        [
            "GET ?per_page=100&page=1",
            "GET ?per_page=100&page=2",
            "GET ?per_page=100&page=3"
        ]
    );
    assert!(
        stub.seen()
            .iter()
            .all(|seen| seen.header("authorization") == Some("Bearer ghp_t"))
    );
}

#[tokio::test]
async fn entries_that_move_between_pages_count_once_and_an_empty_page_is_the_end() {
    let stub = Stub::start(|seen, _| match seen.path.rsplit_once("&page=").unwrap().1 {
        "1" => reply(200, &page(900, &[runner(1, "a", "online", false)])),
        "2" => reply(
            200,
            &page(
                900,
                &[
                    runner(1, "a", "online", false),
                    runner(2, "b", "online", false),
                ],
            ),
        ),
        _ => reply(200, &page(900, &[])),
    })
    .await;
    let listing = stub.client("o/r").list_runners(NOW).await.unwrap();
    assert_eq!(
        listing
            .runners
            .iter()
            .map(|runner| runner.id)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(stub.seen().len(), 3);
}

#[tokio::test]
async fn what_servers_leave_out_is_no_reason_to_know_nothing() {
    let stub = Stub::start(|_, _| {
        let odd = [
            json!({"id": 1, "name": "bare"}),
            json!({"id": 2, "name": "null", "status": null, "busy": null, "labels": null, "version": null,
                "runner_group_id": null, "os": "unknown", "new": {}}),
            json!({"id": 3, "name": "full", "status": "offline", "busy": false, "version": "2.338.0",
                "labels": [{"name": "cuda"}]}),
        ];
        reply(200, &page(3, &odd))
    })
    .await;
    let listing = stub.client("o/r").list_runners(NOW).await.unwrap();
    let [bare, null, full] = listing.runners.as_slice() else {
        panic!("three")
    };
    assert!(
        bare.online && null.online,
        "an unknown status must not lead to a removal"
    );
    assert!(!full.online);
    assert_eq!(
        (&*full.labels, full.version.as_deref()),
        (&["cuda".to_owned()][..], Some("2.338.0"))
    );
}

#[tokio::test]
async fn a_runner_is_found_by_its_whole_name_also_where_the_filter_is_ignored() {
    let stub = Stub::start(|seen, _| {
        if seen.path.ends_with("&page=1") {
            reply(200, &page(101, &[runner(1, "pool a/b-2", "online", true)]))
        } else {
            reply(200, &page(101, &[runner(2, "pool a/b", "offline", false)]))
        }
    })
    .await;
    let client = stub.client("o/r");
    assert_eq!(client.find_runner("pool a/b").await.unwrap().unwrap().id, 2);
    assert_eq!(
        stub.lines()[0],
        "GET ?name=pool%20a%2Fb&per_page=100&page=1"
    );
    assert_eq!(client.find_runner("pool").await.unwrap(), None);
}

#[tokio::test]
async fn removing_tells_removed_gone_and_busy_apart() {
    for (answer, expected) in [
        (204, Deletion::Deleted),
        (404, Deletion::Gone),
        (422, Deletion::Busy),
    ] {
        let stub = Stub::start(move |seen, _| match (&seen.method, answer) {
            (&Method::GET, _) => reply(200, &page(1, &[runner(8, "other", "online", true)])),
            (_, 204) => raw(204, ""),
            (_, status) => error(status, "Runner a is still running a job"),
        })
        .await;
        assert_eq!(stub.client("o/r").delete_runner(7).await.unwrap(), expected);
        assert_eq!(stub.lines()[0], "DELETE /7");
        assert_eq!(stub.seen().len() > 1, answer == 404);
    }
}

#[tokio::test]
async fn one_that_is_not_found_and_still_listed_is_not_gone() {
    // A missing permission, or a moment's failure, looks the same; and so does a list that is not there
    for listed in [true, false] {
        let stub = Stub::start(move |seen, _| match seen.method {
            Method::GET if listed => reply(200, &page(1, &[runner(7, "a", "online", true)])),
            _ => error(404, "Not Found"),
        })
        .await;
        let failed = stub.client("o/r").delete_runner(7).await.unwrap_err();
        assert_eq!(failed.category(), "NotFound", "{listed}");
    }
}

#[tokio::test]
async fn runner_groups_are_found_by_name_and_remembered() {
    let stub = Stub::start(|_, _| {
        reply(
            200,
            &json!({"total_count": 2.0, "runner_groups": [{"id": 1.0, "name": "Default"}, {"id": 7, "name": "gpu"}]}),
        )
    })
    .await;
    let client = stub.client("o");
    assert_eq!(client.runner_group_id(None).await.unwrap(), 1);
    assert_eq!(stub.seen().len(), 0);
    assert_eq!(client.runner_group_id(Some("GPU")).await.unwrap(), 7);
    assert_eq!(client.runner_group_id(Some("default")).await.unwrap(), 1);
    assert_eq!(stub.seen().len(), 1);
    assert_eq!(
        stub.seen()[0].path,
        "/api/v3/orgs/o/actions/runner-groups?per_page=100&page=1"
    );
    let error = client.runner_group_id(Some("tpu")).await.unwrap_err();
    assert!(
        error.to_string().contains("its groups are Default, gpu"),
        "{error}"
    );
    assert_eq!(stub.seen().len(), 2, "it might have been made since");
}

#[tokio::test]
async fn an_organization_says_which_repositories_a_group_admits() {
    let stub = Stub::start(|seen, _| match seen.header("if-none-match") {
        Some(_) => raw(304, ""),
        None => reply(
            200,
            &json!({"total_count": 1, "runner_groups": [{"id": 7, "name": "gpu"}]}),
        )
        .with("etag", "W/\"one\""),
    })
    .await;
    let (org, widgets) = (stub.client("o"), Repository::new("O/widgets").unwrap());
    assert!(org.admits(Some("GPU"), &widgets).await.unwrap());
    assert!(!org.admits(Some("cpu"), &widgets).await.unwrap());
    assert!(!org.admits(None, &widgets).await.unwrap());
    let paths: Vec<_> = stub.seen().iter().map(|seen| seen.path.clone()).collect();
    let path =
        "/api/v3/orgs/o/actions/runner-groups?visible_to_repository=widgets&per_page=100&page=1";
    assert_eq!(paths, [path; 3]);
    assert_eq!(org.usage().not_modified, 2);

    // Of others nothing is known
    let foreign = Repository::new("p/widgets").unwrap();
    assert!(org.admits(None, &foreign).await.unwrap());
    let own = stub.client("o/widgets");
    assert!(own.admits(None, &widgets).await.unwrap());
    assert_eq!(stub.seen().len(), 3);
}

#[tokio::test]
async fn a_repository_has_one_group_and_is_not_asked() {
    let stub = Stub::start(|_, _| error(404, "Not Found")).await;
    let client = stub.client("o/r");
    assert_eq!(client.runner_group_id(Some("default")).await.unwrap(), 1);
    let error = client.runner_group_id(Some("gpu")).await.unwrap_err();
    assert_eq!(error.category(), "Validation");
    assert_eq!(stub.seen().len(), 0);
}

#[tokio::test]
async fn a_renamed_repository_is_followed_on_the_same_server_only() {
    let stub = Stub::start(|seen, _| {
        if seen.path.contains("/repos/o/old") {
            let host = seen.header("host").unwrap();
            error(301, "Moved Permanently").with(
                "location",
                &format!("https://{host}/api/v3/repositories/1/actions/runners?page=1"),
            )
        } else if seen.path.contains("/repos/o/away") {
            error(301, "Moved Permanently").with("location", "https://elsewhere.example/runners")
        } else {
            reply(200, &page(0, &[]))
        }
    })
    .await;
    stub.client("o/old").list_runners(NOW).await.unwrap();
    let error = stub.client("o/away").list_runners(NOW).await.unwrap_err();
    assert_eq!(error.category(), "Malformed");
}
