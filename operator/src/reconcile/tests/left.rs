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
