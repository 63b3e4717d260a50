//! `why` about one job: by its address or its name, without GitHub.

use cuda_runner_plan::fleet::{Builder, Fleet, Known};
use cuda_runner_plan::why::job::{Answer, Asked, of};
use jiff::Timestamp;

use crate::connect::Pools;
use crate::text::wrap;
use crate::top;

/// What is known of a job: from the operator's document, or else from the statuses of the pools.
pub(crate) async fn ask(pools: &Pools, asked: &Asked, now: Timestamp) -> Result<Answer, String> {
    let (fleet, instead) = match top::of_operator(pools).await {
        Ok(fleet) => (fleet, None),
        Err(why) => (of_statuses(pools, now).await?, Some(why)),
    };
    let mut answer = of(&fleet, asked);
    answer
        .notes
        .extend(instead.map(|why| format!("It was not read, because {why}")));
    if answer.jobs.is_empty() {
        return Err(answer.notes.join(". "));
    }
    Ok(answer)
}

/// What the pools' statuses tell of jobs.
async fn of_statuses(pools: &Pools, now: Timestamp) -> Result<Fleet, String> {
    let mut builder = Builder::new(now, None, None, None);
    for pool in pools.all().await? {
        builder.pool(&pool, Known::default());
    }
    Ok(builder.finish())
}

/// The jobs, a paragraph each, and what that is worth.
pub(crate) fn text(answer: &Answer) -> String {
    let mut text = String::new();
    for told in &answer.jobs {
        wrap(&mut text, "", 2, &told.says);
    }
    for note in &answer.notes {
        wrap(&mut text, "", 0, note);
    }
    text
}

#[cfg(test)]
mod tests {
    use cuda_runner_plan::Queue;
    use cuda_runner_plan::model::github::QueuedJob;
    use jiff::SignedDuration;
    use serde_json::{Value, json};
    use std::sync::Arc;

    use super::*;
    use crate::fixture::{self, NOW};
    use crate::played::{Step, play};
    use crate::top::tests::{DOCUMENT, SERVICES, service};

    const PAGE: &str = "https://github.com/acme/widgets/actions/runs/9127464100/job/24981";

    /// The operator's document, with a job that waits.
    fn document() -> Value {
        let queue = Queue {
            at: NOW,
            asked: None,
            jobs: Ok(Some(
                [QueuedJob {
                    id: Some(24_981),
                    run: 9_127_464_100,
                    name: "oxide-backend".to_owned(),
                    labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
                    created_at: Some(NOW - SignedDuration::from_mins(4)),
                    ..QueuedJob::default()
                }]
                .into(),
            )),
            registered: Some([].into()),
            shut_out: None,
        };
        let operator = cuda_runner_plan::fleet::Operator {
            name: "operator-1".to_owned(),
            version: "0.1.0".to_owned(),
            since: NOW,
            leads: true,
        };
        let mut builder = Builder::new(NOW, Some(operator), None, None);
        let known = Known {
            read: Some(&Arc::new(queue)),
            heard: None,
        };
        builder.pool(&fixture::pool("my-pool"), known);
        serde_json::to_value(builder.finish()).unwrap()
    }

    async fn asked(what: &str, script: Vec<Step>) -> Result<Answer, String> {
        let (pools, server) = play(script);
        let answer = ask(&pools, &Asked::parse(what).unwrap(), NOW).await;
        drop(pools);
        server.await.unwrap();
        answer
    }

    fn without_the_page() -> Vec<Step> {
        let pool = serde_json::to_value(fixture::pool("my-pool")).unwrap();
        vec![
            Step::List(SERVICES.to_owned(), vec![]),
            Step::List(
                "/apis/cudarunner.dev/v1alpha1/cudarunners".to_owned(),
                vec![pool],
            ),
        ]
    }

    #[tokio::test]
    async fn a_job_that_waits_is_told_with_its_pool_and_why() {
        let script = vec![
            Step::List(SERVICES.to_owned(), vec![service()]),
            Step::Object(DOCUMENT.to_owned(), document()),
        ];
        let answer = asked(PAGE, script).await.unwrap();
        let screen = text(&answer);
        fixture::fits(&screen);
        insta::assert_snapshot!(screen);
        fixture::in_the_reference(&screen);
        let json = json!(answer);
        assert_eq!(json["jobs"][0]["state"], "Waiting");
        assert_eq!(json["jobs"][0]["pools"], json!(["ci/my-pool"]));
    }

    #[tokio::test]
    async fn without_the_page_the_statuses_are_asked_and_the_answer_says_so() {
        let answer = asked("oxide-backend", without_the_page()).await.unwrap();
        let screen = text(&answer).replace('\n', " ");
        assert!(screen.contains("failure"), "{screen}");
        assert!(
            screen.contains("from the statuses of the pools alone"),
            "{screen}"
        );
        let unknown = asked("nobody", without_the_page()).await.unwrap_err();
        assert!(
            unknown.contains("Nothing is known of the job nobody")
                && unknown.contains("fleetPage.enabled"),
            "{unknown}"
        );
    }
}
