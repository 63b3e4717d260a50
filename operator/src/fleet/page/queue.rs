//! The jobs that wait: of all pools, of one, and those that no pool takes.

use maud::{Markup, html};

use super::{job, pool_link, time};
use cuda_runner_plan::fleet::{Fleet, Pool, Waiting, WaitingJob};

/// The queues, and the jobs that are in none.
pub(super) fn of_all(fleet: &Fleet) -> Markup {
    let waiting: Vec<&Pool> = fleet.pools.iter().filter(|p| p.queue.jobs > 0).collect();
    html! {
        @if waiting.is_empty() { p { "No job waits." } }
        @else {
            div.wide { table {
                thead { tr { th { "Pool" } th.n { "Jobs" } th { "Oldest" } th { "Why it waits" } } }
                tbody { @for pool in waiting { tr {
                    td { (pool_link(&pool.key())) }
                    td.n { (pool.queue.jobs) }
                    td { (job(pool.queue.oldest.as_ref())) }
                    td.why { (pool.queue.why.as_deref().unwrap_or("–")) }
                } } }
            } }
        }
        @if !fleet.unserved.is_empty() {
            h2 { "Jobs that no pool takes" }
            p { "No runner has all the labels that they ask for." }
            (table(&fleet.unserved, fleet.unserved_not_listed))
        }
    }
}

/// The jobs that wait for one pool.
pub(super) fn of_pool(queue: &Waiting) -> Markup {
    html! {
        @if queue.jobs > 0 {
            h2 { "Jobs that wait" }
            (table(&queue.waiting, queue.waiting_not_listed))
        }
    }
}

fn table(jobs: &[WaitingJob], not_listed: u32) -> Markup {
    html! {
        @if !jobs.is_empty() {
            div.wide { table {
                thead { tr { th { "Job" } th { "Workflow" } th { "Asks for" } th { "Waits since" } } }
                tbody { @for waiting in jobs { tr {
                    td { (job(Some(&waiting.job))) }
                    td { (waiting.job.workflow.as_deref().unwrap_or("–")) }
                    td { (waiting.labels.join(", ")) }
                    td { @if let Some(since) = waiting.since { (time(since)) } @else { "–" } }
                } } }
            } }
        }
        @if not_listed > 0 {
            p { @if !jobs.is_empty() { "and " } (not_listed) @if !jobs.is_empty() { " more" } " of which no more is known here" }
        }
    }
}
