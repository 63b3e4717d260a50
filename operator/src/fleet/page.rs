//! The pages: the fleet, one device, one pool, the hours. All text is escaped by the templates; nothing of it is markup.
//!
//! Each page lies beside the others, so that every link leads from one to the other behind whatever path a proxy puts before
//! them.

mod history;
mod hours;
mod queue;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use cuda_runner_plan::fleet::{Device, DeviceState, Fleet, Job, Node};

pub use history::{device, pool};
pub use hours::{hours, hours_csv};

/// How it looks.
pub const STYLE: &str = include_str!("assets/style.css");
/// What renews it.
pub const SCRIPT: &str = include_str!("assets/script.js");
/// Its picture in a browser's tabs.
pub const ICON: &str = include_str!("assets/icon.svg");

/// What is around each page.
fn whole(title: &str, here: &str, fleet: &Fleet, body: &Markup) -> String {
    let link = |to: &str, name: &str| {
        html! { a href=(to) aria-current=[(to == here).then_some("page")] { (name) } }
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="icon" href="icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="style.css";
                script src="script.js" defer {}
                noscript { meta http-equiv="refresh" content="30"; }
            }
            body {
                a.skip href="#content" { "To the content" }
                header {
                    strong { "GPU runners" }
                    nav aria-label="Pages" { (link("./", "Fleet")) (link("hours", "Hours")) a href="api/fleet" { "JSON" } }
                    span #live .dim role="status" {}
                }
                main #content tabindex="-1" { (body) (known(fleet)) }
            }
        }
    };
    page.into_string()
}

/// What the answer is worth.
fn known(fleet: &Fleet) -> Markup {
    html! {
        p.dim {
            "As of " (time(fleet.generated_at)) "."
            @if let Some(operator) = &fleet.operator {
                " By " (operator.name) " " (operator.version) ", which knows of what happened since " (time(operator.since))
                ", and of earlier what the pools' statuses keep."
                @if !operator.leads {
                    " This replica stands by: which job waits longest, which jobs run and the hours are known to the one that leads."
                }
            }
            @if !fleet.nodes_visible { " Nodes cannot be read by this operator: only those are shown on which runners are." }
            @else if !fleet.others_visible { " Pods of others cannot be read: what they hold looks free." }
        }
    }
}

/// The fleet at a glance.
#[must_use]
pub fn fleet(fleet: &Fleet) -> String {
    let body = html! {
        h1 { "Fleet" }
        ul.legend aria-label="Devices by use" {
            @for state in DeviceState::ALL {
                li { span class={ "d " (class(state)) } aria-hidden="true" { (letter(state)) } " "
                    (fleet.devices.get(&state).copied().unwrap_or(0)) " " (state.label()) }
            }
        }
        h2 { "Queue" }
        (queue::of_all(fleet))
        h2 { "Pools" }
        (pools(fleet))
        h2 #nodes { "Nodes" }
        @if fleet.nodes.is_empty() { p { "No node with GPUs is known." } }
        @for node in &fleet.nodes { (self::node(node)) }
        @if fleet.nodes_not_listed > 0 { p { "and " (fleet.nodes_not_listed) " more" } }
    };
    whole("Fleet", "./", fleet, &body)
}

fn pools(fleet: &Fleet) -> Markup {
    html! {
        @if fleet.pools.is_empty() { p { "There is no CudaRunner." } }
        @else {
            div.wide { table {
                thead { tr {
                    th { "Pool" } th { "Ready" } th.n { "Runners" } th.n { "Pending" } th.n { "Gate" } th.n { "Online" } th.n { "Busy" } th.n { "Queued" }
                } }
                tbody { @for pool in &fleet.pools { tr {
                    td { (pool_link(&pool.key())) }
                    td { @if pool.ready { "yes" } @else { span.bad { (pool.held.first().map_or("no", |held| held.reason.as_str())) } } }
                    td.n { (pool.runners) } td.n { (pool.pending) } td.n { (pool.gated) } td.n { (pool.online) } td.n { (pool.busy) } td.n { (pool.queue.jobs) }
                } } }
            } }
            @if fleet.pools_not_listed > 0 { p { "and " (fleet.pools_not_listed) " more" } }
        }
    }
}

fn node(node: &Node) -> Markup {
    html! {
        section.node aria-label={ "Node " (node.name) } {
            div {
                strong { (node.name) }
                @if node.ready == Some(false) { " " span.bad { "not ready" } }
                @if node.cordoned { " " span.dim { "cordoned" } }
                div.dim { (node.gpus.map_or_else(|| "GPUs by claim".to_owned(), |n| format!("{n} GPU{}", if n == 1 { "" } else { "s" })))
                    @if let Some(product) = &node.product { ", " (product) } }
            }
            ul.devices { @for device in &node.devices { li { (square(device)) } } }
        }
    }
}

/// A device. Only one with a name has a page.
fn square(device: &Device) -> Markup {
    let says = says(device);
    let class = class(device.state);
    html! {
        @if let Some(uuid) = &device.uuid {
            a class={ "d " (class) } id=(uuid) href=(device_page(uuid)) title=(says) aria-label=(says) { (letter(device.state)) }
        } @else {
            span class={ "d " (class) } role="img" title=(says) aria-label=(says) { (letter(device.state)) }
        }
    }
}

/// What a reader hears, or sees beside the pointer.
fn says(device: &Device) -> String {
    let mut parts = vec![device.state.label().to_owned()];
    if let Some(job) = &device.job {
        parts.push(job.name.clone());
    }
    parts.extend(device.runner.clone().or_else(|| device.pool.clone()));
    parts.extend(device.uuid.clone());
    parts.extend(device.message.clone());
    parts.extend(device.until.map(|until| format!("until {until}")));
    parts.join(", ")
}

fn class(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Free => "free",
        DeviceState::Gate => "gate",
        DeviceState::Idle => "idle",
        DeviceState::Job => "job",
        DeviceState::Ending | DeviceState::Unknown => "ending",
        DeviceState::Failed => "failed",
        DeviceState::Quarantined => "quarantined",
        DeviceState::NotOurs => "not-ours",
    }
}

/// Colours alone say nothing to many people.
fn letter(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Free => "·",
        DeviceState::Gate => "G",
        DeviceState::Idle => "I",
        DeviceState::Job => "J",
        DeviceState::Ending => "E",
        DeviceState::Failed => "F",
        DeviceState::Quarantined => "Q",
        DeviceState::NotOurs => "–",
        DeviceState::Unknown => "?",
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn device_page(uuid: &str) -> String {
    format!("device?uuid={}", encoded(uuid))
}

/// A link to a pool by `NAMESPACE/NAME`.
fn pool_link(key: &str) -> Markup {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let page = format!(
        "pool?namespace={}&name={}",
        encoded(namespace),
        encoded(name)
    );
    html! { a href=(page) { (key) } }
}

/// A job, with a link to its run where that is on the web. Whoever may write a status chooses the address.
fn job(job: Option<&Job>) -> Markup {
    let Some(job) = job else {
        return html! { "–" };
    };
    let url = job.url.as_deref();
    let url = url.filter(|url| url.starts_with("https://") || url.starts_with("http://"));
    html! {
        @if let Some(url) = url { a href=(url) rel="noreferrer" { (job.name) } } @else { (job.name) }
        @if let Some(repository) = &job.repository { " " span.dim { (repository) } }
    }
}

/// To the second, in UTC.
fn time(at: Timestamp) -> Markup {
    html! { time datetime=(at) { (at.strftime("%Y-%m-%d %H:%M:%SZ")) } }
}

#[cfg(test)]
pub(super) mod tests;
