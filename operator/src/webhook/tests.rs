//! Whose webhook is found by which name.

use super::*;
use jiff::SignedDuration;

fn name(namespace: &str) -> HookName {
    HookName {
        namespace: namespace.to_owned(),
        address: "https://github.com/acme/widgets".to_owned(),
        secret: None,
    }
}

fn webhooks() -> Webhooks {
    Webhooks::new("https://hooks.example.com/below/", Keys::of(1, 2, None))
}

#[tokio::test(start_paused = true)]
async fn unknown_names_are_looked_for_once_in_a_while() {
    let webhooks = webhooks();
    let address = webhooks.address(&name("ci"));
    let id = address
        .strip_prefix("https://hooks.example.com/below/hooks/")
        .unwrap();
    let looks = std::cell::Cell::new(0);
    let find = |id: &str, there: &[&str]| {
        let all = || {
            looks.set(looks.get() + 1);
            there.iter().map(|namespace| name(namespace)).collect()
        };
        webhooks.find(id, all)
    };
    // Whoever guesses costs one look a second
    for _ in 0..100 {
        assert_eq!(find("guessed", &["ci"]), None);
    }
    assert_eq!(looks.get(), 1);
    assert_eq!(find(id, &["ci"]), Some(name("ci")));
    assert_eq!(looks.get(), 1, "it is known since");

    // A new pool's is found a second later
    let other = webhooks.keys().id(&name("other"));
    assert_eq!(find(&other, &["ci", "other"]), None);
    tokio::time::advance(LOOK).await;
    assert_eq!(find(&other, &["ci", "other"]), Some(name("other")));
}

#[tokio::test(start_paused = true)]
async fn events_of_one_webhook_make_one_read_in_two_seconds() {
    let webhooks = webhooks();
    let (id, other) = (
        webhooks.keys().id(&name("ci")),
        webhooks.keys().id(&name("other")),
    );
    webhooks.find(&id, || [name("ci"), name("other")].into());
    let begin = Timestamp::UNIX_EPOCH;
    let reads: BTreeSet<_> = (0..1000)
        .map(|step| webhooks.read_at(&id, begin + SignedDuration::from_millis(step * 10)))
        .collect();
    // Ten seconds: at once, and five times more
    assert_eq!(reads.len(), 6);
    assert_eq!(
        webhooks.read_at(&other, begin),
        begin,
        "another's is its own"
    );
}
