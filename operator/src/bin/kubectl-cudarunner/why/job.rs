//! `why` about one job: by its address or its name, without GitHub.

use std::fmt::Write as _;
use std::time::Duration;

use cuda_runner_plan::why::job::{Answer, Asked, Candidate, of};
use jiff::Timestamp;

use crate::connect::Pools;
use crate::documents;
use crate::text::{count, wrap};

/// So long operators may take for their documents: a person waits for the answer.
const ASK: Duration = Duration::from_millis(500);

/// What is known of a job: from the operators' documents, and from the statuses of the pools that none of them has.
pub(crate) async fn ask(pools: &Pools, asked: &Asked, now: Timestamp) -> Result<Answer, String> {
    let known = documents::read(pools, ASK, now).await?;
    let (is_all, others) = (known.is_all, known.others.clone());
    let by_status = known.by_status(now);
    let fleet = known.joined(Some(by_status));
    let fleet = fleet.ok_or("nobody was asked")?;
    let mut answer = of(&fleet, asked, &others);
    if !is_all {
        answer.notes.push(format!(
            "Pools of other namespaces than {} cannot be listed: those of which no operator tells are not known",
            pools.namespace
        ));
    }
    if answer.jobs.is_empty() && answer.pools.is_empty() {
        let first = answer.not_served.into_iter();
        let notes: Vec<String> = first.chain(answer.notes).collect();
        return Err(notes.join(". "));
    }
    Ok(answer)
}

/// The jobs, a paragraph each, and what that is worth.
pub(crate) fn text(answer: &Answer) -> String {
    let mut text = String::new();
    // It comes first, since it says that all the rest is old.
    if let Some(not_served) = &answer.not_served {
        wrap(&mut text, "", 0, not_served);
    }
    for told in &answer.jobs {
        wrap(&mut text, "", 2, &told.says);
    }
    for pool in &answer.pools {
        candidate(&mut text, pool);
    }
    for note in &answer.notes {
        wrap(&mut text, "", 0, note);
    }
    text
}

/// A pool for the job's repository, and what holds its jobs.
fn candidate(text: &mut String, pool: &Candidate) {
    let waits = match pool.queued {
        0 => "no job is known to wait".to_owned(),
        1 => "1 job waits".to_owned(),
        queued => format!("{} wait", count(queued, "job")),
    };
    let head = format!("{}, for [{}]: {waits}", pool.pool, pool.labels.join(", "));
    wrap(text, "", 2, &head);
    for cause in &pool.causes {
        wrap(text, &format!("  {}: ", cause.about), 4, &cause.message);
    }
    if pool.causes.is_empty() {
        let _ = writeln!(text, "  Nothing holds its jobs.");
    }
}

#[cfg(test)]
mod tests {
    use cuda_runner_plan::Queue;
    use cuda_runner_plan::fleet::{Builder, Known};
    use cuda_runner_plan::model::github::QueuedJob;
    use jiff::SignedDuration;
    use serde_json::{Value, json};
    use std::sync::Arc;

    use super::*;
    use crate::fixture::{self, NOW};
    use crate::played::{Answered, Late, answers};
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

    async fn asked(what: &str, server: Late) -> Result<Answer, String> {
        ask(&answers(server), &Asked::parse(what).unwrap(), NOW).await
    }

    /// The pools `my-pool` and `spare`, and these Services of fleet pages.
    fn with(services: Vec<Value>) -> Late {
        let pools = ["my-pool", "spare"];
        let pools = pools.map(|name| fixture::served(name, "cuda-runner-system"));
        let pools = pools.map(|pool| serde_json::to_value(pool).unwrap());
        Late::default()
            .on(&format!("GET {SERVICES}"), Answered::List(services))
            .on(
                "GET /apis/cudarunner.dev/v1alpha1/cudarunners",
                Answered::List(pools.to_vec()),
            )
    }

    #[tokio::test]
    async fn a_job_that_waits_is_told_with_its_pool_and_why() {
        let server = with(vec![service()]).on(DOCUMENT, Answered::Object(document()));
        let answer = asked(PAGE, server).await.unwrap();
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
        let answer = asked("oxide-backend", with(vec![])).await.unwrap();
        let screen = text(&answer).replace('\n', " ");
        assert!(screen.contains("failure"), "{screen}");
        assert!(
            screen.contains("from the statuses of the pools alone"),
            "{screen}"
        );
        let unknown = asked("nobody", with(vec![])).await.unwrap_err();
        assert!(
            unknown.contains("Nothing is known of the job nobody")
                && unknown.contains("fleetPage.enabled"),
            "{unknown}"
        );
    }

    #[tokio::test]
    async fn without_the_page_the_pools_for_the_repository_are_told_and_what_holds_them() {
        // Given a job of which no status tells, by its address
        let unknown = "https://github.com/acme/widgets/actions/runs/17/job/170";
        let answer = asked(unknown, with(vec![])).await.unwrap();
        // Then the pools are named, and what `why` says of them
        let screen = text(&answer);
        fixture::fits(&screen);
        insta::assert_snapshot!(screen);
        fixture::in_the_reference(&screen);
        let json = json!(answer);
        assert_eq!(json["pools"][0]["pool"], "ci/my-pool");
        assert_eq!(
            json["pools"][0]["causes"][0]["about"],
            "RunnersOnline (Unschedulable)"
        );
        // And where no pool is for the repository, nothing is known
        let other = "https://github.com/acme/gadgets/actions/runs/17/job/170";
        let refused = asked(other, with(vec![])).await.unwrap_err();
        assert!(refused.contains("No pool is for acme/gadgets"), "{refused}");
    }

    #[tokio::test]
    async fn who_may_list_one_namespace_is_told_so() {
        let one = |name: &str| serde_json::to_value(fixture::pool(name)).unwrap();
        let server = Late::default()
            .on(&format!("GET {SERVICES}"), Answered::List(vec![]))
            .on(
                "GET /apis/cudarunner.dev/v1alpha1/cudarunners",
                Answered::Refused(403),
            )
            .on(
                &format!("GET {}", crate::played::pools_of("ci")),
                Answered::List(vec![one("spare")]),
            );
        let other = "https://github.com/acme/gadgets/actions/runs/17/job/170";
        let refused = asked(other, server).await.unwrap_err();
        assert!(
            refused.contains("Pools of other namespaces than ci cannot be listed"),
            "{refused}"
        );
    }
}
