//! One device and one pool, each with what has happened there.

use maud::{Markup, html};

use super::{device_page, job, pool_link, queue, says, time, whole};
use cuda_runner_plan::fleet::{Device, Event, EventKind, Fleet, Node};

/// One device, by its UUID; `None` where nothing is known of it.
#[must_use]
pub fn device(fleet: &Fleet, uuid: &str) -> Option<String> {
    let places = fleet
        .nodes
        .iter()
        .flat_map(|node| node.devices.iter().map(move |d| (node, d)));
    let now: Vec<(&Node, &Device)> = places
        .filter(|(_, d)| d.uuid.as_deref() == Some(uuid))
        .collect();
    let events: Vec<&Event> = fleet
        .history
        .iter()
        .filter(|event| event.devices.iter().any(|device| device == uuid))
        .collect();
    let compared = fleet.compared(uuid);
    if now.is_empty() && events.is_empty() && compared.is_none() {
        return None;
    }
    let body = html! {
        h1 { (uuid) }
        dl {
            @for (node, device) in &now {
                dt { "Node" } dd { (node.name) @if let Some(product) = &node.product { ", " (product) } }
                dt { "Now" } dd { (says(device)) }
                @if let Some(pool) = &device.pool { dt { "Pool" } dd { (pool_link(pool)) } }
                @if device.job.is_some() { dt { "Job" } dd { (job(device.job.as_ref())) } }
            }
            @if now.is_empty() { dt { "Now" } dd { "no runner holds it" } }
            @if let Some((own, others)) = compared {
                dt { "Failed jobs" } dd {
                    (own) " on this device, " (others) " on the other devices of its pools."
                    @if own.suspect { " " span.bad { "More than chance explains." } }
                }
            }
        }
        h2 { "Gates and jobs" }
        (table(&events))
    };
    Some(whole(uuid, "device", fleet, &body))
}

/// One pool; `None` where there is none of this name.
#[must_use]
pub fn pool(fleet: &Fleet, namespace: &str, name: &str) -> Option<String> {
    let mut pools = fleet.pools.iter();
    let pool = pools.find(|pool| pool.namespace == namespace && pool.name == name)?;
    let key = pool.key();
    let events: Vec<&Event> = fleet
        .history
        .iter()
        .filter(|event| event.pool == key)
        .collect();
    let is_web = pool.url.starts_with("https://");
    let body = html! {
        h1 { (key) }
        dl {
            dt { "Runs jobs of" } dd { @if is_web { a href=(pool.url) rel="noreferrer" { (pool.url) } } @else { (pool.url) } }
            dt { "Ready" } dd { @if pool.ready { "yes" } @else { span.bad { "no" } } }
            dt { "Labels" } dd { (pool.labels.join(", ")) }
            dt { "Runners" } dd {
                (pool.runners) ", each with " (pool.gpu) ": " (pool.pending) " pending, " (pool.gated) " at the gate, "
                (pool.online) " online, " (pool.busy) " busy"
            }
            dt { "Quarantine" } dd { (pool.quarantined) @if pool.quarantined == 1 { " entry" } @else { " entries" } }
            dt { "Queue" } dd {
                (pool.queue.jobs) " waiting"
                @if pool.queue.oldest.is_some() { ", the oldest " (job(pool.queue.oldest.as_ref())) }
                @if let Some(why) = &pool.queue.why { div { (why) } }
            }
        }
        @if !pool.held.is_empty() {
            h2 { "Not as wished" }
            dl { @for held in &pool.held { dt { (held.type_) } dd { (held.reason) ": " (held.message) } } }
        }
        (queue::of_pool(&pool.queue))
        h2 { "Gates and jobs" }
        (table(&events))
    };
    Some(whole(&key, "pool", fleet, &body))
}

/// What ended.
fn what(event: &Event) -> Markup {
    match event.kind {
        EventKind::Gate => html! { "gate" },
        EventKind::Runner => html! { "runner" },
        EventKind::Job | EventKind::Unknown => job(event.job.as_ref()),
    }
}

fn table(events: &[&Event]) -> Markup {
    html! {
        @if events.is_empty() { p { "Nothing is known: nothing has ended, or it is not kept any more." } }
        @else {
            div.wide { table {
                thead { tr { th { "Ended" } th { "What" } th { "Result" } th { "Runner" } th { "Node" } th { "Devices" } th { "Why" } } }
                tbody { @for event in events { tr {
                    td { (time(event.at)) }
                    td { (what(event)) }
                    td { @if event.failed { span.bad { (event.result) } } @else { (event.result) } }
                    td { (event.runner) }
                    td { (event.node.as_deref().unwrap_or("–")) }
                    td { @for device in &event.devices { a href=(device_page(device)) { (device) } " " } }
                    td.why { (event.message.as_deref().unwrap_or("")) }
                } } }
            } }
        }
    }
}
