//! A resource that is gone: what is said of it, and when nothing is.

use super::*;
use crate::act::act;
use crate::owner;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::{Action, Plan};

/// The notes of Events that were sent since the last time.
async fn notes(cluster: &Cluster) -> Vec<String> {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let all = std::mem::take(&mut *cluster.0.lock().unwrap());
    let events = all.iter().filter(|(_, path, _)| path.ends_with("/events"));
    let notes = events.filter_map(|(_, _, event)| event["note"].as_str());
    notes.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_pool_whose_finalizer_was_taken_off_by_hand_says_what_stays() {
    // Given a pool that this operator serves, and how it goes
    for (what, is_held, is_let_go, is_there, is_told) in [
        (
            "the finalizer was taken off by hand",
            true,
            false,
            false,
            true,
        ),
        ("the operator has taken it off", true, true, false, false),
        ("it never had one", false, false, false, false),
        ("its label has changed", true, false, true, false),
    ] {
        let cluster = Cluster::default();
        let ctx = context(&cluster).await;
        let shown = resource(|resource| {
            if !is_held {
                resource.metadata.finalizers = None;
            }
        });
        reconcile(Arc::clone(&shown), Arc::clone(&ctx))
            .await
            .unwrap();
        let pool = Pool::read(&shown, false);
        if is_let_go {
            let mut plan = Plan {
                actions: vec![Action::RemoveFinalizer],
                ..Plan::default()
            };
            act(&ctx, &pool, None, &mut plan).await;
        }
        if is_there {
            let there = serde_json::to_value(&*shown).unwrap();
            cluster.4.lock().unwrap().insert("cudarunners", there);
        }
        notes(&cluster).await;

        // When the watch shows it no more, then an Event names what stays, where nobody has removed that
        owner::gone(&ctx, pool.key.clone());
        let said = notes(&cluster).await;
        assert_eq!(said.len(), usize::from(is_told), "{what}: {said:?}");
        let label = pool.ownership_label();
        assert!(said.iter().all(|note| note.contains(&label)), "{said:?}");
    }
}
