//! Events: published beside the reconciles, so that one which is answered late holds up nothing else.

use std::time::Duration;

use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::{About, Notice};

/// Events that wait to be published, of all pools together. Beyond them they are only logged.
const WAITING: usize = 4096;
/// Events that are published at a time.
const AT_ONCE: usize = 16;
/// Events that are remembered, so that the next of the same kind is counted instead of made anew. Those of a thousand
/// pools would take megabytes.
const REMEMBERED: usize = 128;
/// One that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(30);

/// The Event that says this, of what was done.
#[must_use]
pub fn event_of(notice: &Notice, action: &str, secondary: Option<ObjectReference>) -> Event {
    Event {
        type_: if notice.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: notice.reason.to_string(),
        note: Some(notice.cut()),
        action: action.to_owned(),
        secondary,
    }
}

/// An Event, and the pool that it is about.
struct Item {
    event: Event,
    pool: ObjectReference,
}

/// Publishes Events.
pub struct Events(Sender<Item>);

impl Events {
    /// Starts to publish. The task ends with what is returned.
    #[must_use]
    pub fn start(client: Client, reporter: Reporter) -> Self {
        let (sender, receiver) = channel(WAITING);
        tokio::spawn(publish_all(receiver, client, reporter));
        Self(sender)
    }

    /// Has these published, and waits for none. One that is lost is not worth a failed reconcile.
    pub fn publish(&self, pool: &Pool, notices: &[Notice]) {
        for notice in notices {
            let secondary = notice.about.as_ref();
            let secondary = secondary.map(|about| reference(&pool.key, about));
            let item = Item {
                event: event_of(notice, "Reconcile", secondary),
                pool: regarding(pool),
            };
            if self.0.try_send(item).is_err() {
                tracing::warn!(
                    pool = %pool.key,
                    reason = %notice.reason,
                    note = notice.note,
                    "an Event was not published: too many wait"
                );
            }
        }
    }
}

async fn publish_all(mut items: Receiver<Item>, client: Client, reporter: Reporter) {
    let fresh = || Recorder::new(client.clone(), reporter.clone());
    let (mut recorder, mut remembered) = (fresh(), 0);
    futures::stream::poll_fn(|context| items.poll_recv(context))
        .for_each_concurrent(AT_ONCE, |item| {
            // A recorder keeps each for minutes, however many there are.
            if remembered == REMEMBERED {
                (recorder, remembered) = (fresh(), 0);
            }
            remembered += 1;
            publish(recorder.clone(), item)
        })
        .await;
}

async fn publish(recorder: Recorder, Item { event, pool }: Item) {
    let published = recorder.publish(&event, &pool);
    let error = match tokio::time::timeout(DEADLINE, published).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    let (namespace, name) = (&pool.namespace, &pool.name);
    let pool = [namespace, name].map(|part| part.as_deref().unwrap_or_default());
    let pool = pool.join("/");
    let (reason, note) = (&event.reason, &event.note);
    tracing::warn!(pool, error, reason, note, "an Event was not published");
}

/// The resource of a pool.
fn regarding(pool: &Pool) -> ObjectReference {
    ObjectReference {
        api_version: Some(CudaRunner::api_version(&()).into_owned()),
        kind: Some(CudaRunner::kind(&()).into_owned()),
        name: Some(pool.key.name.clone()),
        namespace: Some(pool.key.namespace.clone()),
        uid: Some(pool.uid.clone()),
        ..ObjectReference::default()
    }
}

/// Whom an Event is about, beside the pool.
fn reference(pool: &PoolKey, about: &About) -> ObjectReference {
    let (kind, name, namespace) = match about {
        About::Runner(name) => ("Pod", name, Some(pool.namespace.clone())),
        About::Node(name) => ("Node", name, None),
    };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.clone()),
        namespace,
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;
    use cuda_runner_plan::reason::Stored;
    use http::{Method, Request, Response};
    use kube::client::Body;
    use std::convert::Infallible;
    use tokio::sync::mpsc::unbounded_channel;

    #[tokio::test]
    async fn events_of_many_pools_are_not_all_remembered() {
        // Given an API server that carries out everything
        let (sender, mut sent) = unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            sender.send(request.method().clone()).unwrap();
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from(
                b"{}".to_vec(),
            ))))
        });
        let events = Events::start(Client::new(service, "default"), Reporter::from("test"));
        let notice = Notice {
            warning: false,
            reason: Stored::parse("Reason"),
            note: String::new(),
            about: None,
        };
        let mut publish = async |name: &str| {
            let mut pool = fixture::pool(1);
            pool.key.name = name.to_owned();
            events.publish(&pool, std::slice::from_ref(&notice));
            sent.recv().await.unwrap()
        };

        // When one comes again soon, then it is counted
        assert_eq!(publish("first").await, Method::POST);
        assert_eq!(publish("first").await, Method::PATCH);

        // When those of many others come in between, then it is made anew
        for number in 0..REMEMBERED {
            assert_eq!(publish(&format!("pool-{number}")).await, Method::POST);
        }
        assert_eq!(publish("first").await, Method::POST);
    }
}
