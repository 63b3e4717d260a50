//! An address that the pool has left, with a GitHub that lets no other credentials in there than those of before.

use super::*;
use crate::github::Credentials;
use crate::github::tests::stub::{Stub, error, here, reply};
use crate::observe::observe;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::{Action, Plan};
use cudarunner_crds::LeftStatus;

#[tokio::test]
async fn an_address_is_asked_with_what_last_worked_there_where_the_credentials_do_not_reach_it() {
    // Given a pool that has moved to where other credentials are for, and has left an entry
    let label = Pool::read(&fixture::resource(), false).ownership_label();
    let mut is_there = true;
    let github = Stub::start(move |seen, _| {
        let is_let_in = seen.header("authorization") == Some("Bearer ghp_before");
        match (seen.path.contains("/acme/before/"), &seen.method) {
            (true, _) if !is_let_in => error(404, "Not Found"),
            (true, &Method::DELETE) => {
                is_there = false;
                reply(204, &json!({}))
            }
            _ => {
                let labels = [json!({"id": 1, "name": label, "type": "custom"})];
                let runner = json!({
                    "id": 7, "name": "pool-aaaaa", "os": "linux", "status": "offline", "busy": false, "labels": labels,
                });
                let is_shown = is_there && seen.path.contains("/acme/before/");
                let all = Vec::from_iter(is_shown.then_some(runner));
                reply(200, &json!({"total_count": all.len(), "runners": all}))
            }
        }
    })
    .await;
    let cluster = Cluster::default();
    furnish(&cluster, &github);
    let mut ctx = context(&cluster).await;
    Arc::get_mut(&mut ctx).unwrap().clients = Clients::new(here());
    let before = format!("https://{}/acme/before", github.address());
    let resource = stored(&cluster, &github, |_| {});
    let mut pool = Pool::read(&resource, false);
    pool.status.left_at = vec![LeftStatus {
        url: before.clone(),
        ..LeftStatus::default()
    }];
    let data = BTreeMap::from([("token".to_owned(), b"ghp_before".to_vec())]);
    let credentials = Credentials::from_secret_data(&data).unwrap();
    let client = github.client_as("acme/before", &credentials);
    ctx.clients.last.worked(&pool, before.clone(), client);

    // When it is reconciled, then the entry is removed with those of before
    let planned = async |pool: &Pool| -> Plan {
        let now = Timestamp::now();
        let (observed, client) = observe(&ctx, pool, now).await;
        let mut plan = cuda_runner_plan::plan(pool, &observed, now);
        plan.actions
            .retain(|action| matches!(action, Action::DeleteEntryAt(..)));
        let outcome = crate::act::act(&ctx, pool, client, &mut plan).await;
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        plan
    };
    let plan = planned(&pool).await;
    assert_eq!(plan.status.left_at[0].message, None);
    // And the address is forgotten
    let plan = planned(&pool).await;
    assert_eq!(plan.status.left_at, []);
}

#[tokio::test]
async fn an_address_counts_as_gone_where_github_says_so_thrice_in_a_row_and_lets_the_pool_in() {
    // Given a pool in deletion, and what GitHub answers of its own address and of the one before, minute by minute
    for (answers, is_forgotten) in [
        (&[(200, 404), (200, 404), (200, 404)][..], true),
        (&[(200, 404), (200, 502), (200, 404), (200, 404)], false),
        (&[(404, 404), (200, 404), (200, 404)], false),
        // What is not allowed is there
        (&[(200, 403), (200, 403), (200, 403)], false),
    ] {
        let minute = Arc::new(Mutex::new(answers[0]));
        let shown = Arc::clone(&minute);
        let github = Stub::start(move |seen, _| {
            let (here, before) = *shown.lock().unwrap();
            let status = if seen.path.contains("/acme/before/") {
                before
            } else {
                here
            };
            if status == 200 {
                reply(200, &json!({"total_count": 0, "runners": []}))
            } else {
                error(status, "No")
            }
        })
        .await;
        let cluster = Cluster::default();
        furnish(&cluster, &github);
        let mut ctx = context(&cluster).await;
        Arc::get_mut(&mut ctx).unwrap().clients = Clients::new(here());
        let mut pool = Pool::read(&stored(&cluster, &github, |_| {}), false);
        let mut now = Timestamp::now();
        pool.deleting = Some(now);
        pool.status.left_at = vec![LeftStatus {
            url: format!("https://{}/acme/before", github.address()),
            ..LeftStatus::default()
        }];

        // When it is reconciled so often, then the address is given up where it is gone
        let mut left_at = vec![];
        for answer in answers {
            *minute.lock().unwrap() = *answer;
            ctx.memory.with(&pool, |memory| memory.refresh = true);
            let (observed, _) = observe(&ctx, &pool, now).await;
            left_at = cuda_runner_plan::plan(&pool, &observed, now).status.left_at;
            now += SignedDuration::from_secs(61);
        }
        assert_eq!(left_at.is_empty(), is_forgotten, "{answers:?} {left_at:?}");
    }
}
