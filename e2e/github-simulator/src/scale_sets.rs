//! The service that runner scale sets and their listeners speak to.
//!
//! GitHub does not describe it, so nothing is validated here. What is answered follows what its
//! own client reads. It is found by way of `POST /actions/runner-registration`, takes tokens of its
//! own, and costs nothing of the hourly limit but that first request.

mod agents;
mod connection;
mod queue;
mod sessions;
mod sets;
mod wire;

use std::{net::SocketAddr, sync::Arc};

use axum::body::Body as HttpBody;
use http::{Request, Response};
use hyper::body::Incoming;
use jiff::Timestamp;

use crate::{
    answer::Answer,
    engine,
    exchange::{self, Arrived, Dropped, ENTERPRISE_PREFIX, Notice, Outcome},
    faults::{self, Target},
    shared::Shared,
    state::World,
};
use wire::{authorize, secret};

/// Where clients ask for the service, with a registration token.
const REGISTRATION: &str = "/actions/runner-registration";

/// The service is below this path.
const TENANT: &str = "/tenant/1/";

/// What clients ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    AdminConnection,
    ListSets,
    GetSet(u64),
    CreateSet,
    UpdateSet(u64),
    DeleteSet(u64),
    ListGroups,
    GenerateJitConfig(u64),
    ListAgents,
    GetAgent(u64),
    DeleteAgent(u64),
    CreateSession(u64),
    RefreshSession(u64, String),
    DeleteSession(u64, String),
    AcquireJobs(u64),
    AcquirableJobs(u64),
    GetMessage,
    AcknowledgeMessage(u64),
}

impl Operation {
    fn find(method: &str, path: &str) -> Option<Self> {
        if path == REGISTRATION {
            return (method == "POST").then_some(Self::AdminConnection);
        }
        let parts: Vec<&str> = path
            .strip_prefix(TENANT)?
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        match (method, parts.as_slice()) {
            ("GET", ["message"]) => Some(Self::GetMessage),
            ("DELETE", ["message", id]) => id.parse().ok().map(Self::AcknowledgeMessage),
            ("GET", ["_apis", "runtime", "runnergroups"]) => Some(Self::ListGroups),
            (_, ["_apis", "runtime", "runnerscalesets", rest @ ..]) => Self::of_sets(method, rest),
            (
                _,
                [
                    "_apis",
                    "distributedtask",
                    "pools",
                    "0",
                    "agents",
                    rest @ ..,
                ],
            ) => Self::of_agents(method, rest),
            _ => None,
        }
    }

    fn of_sets(method: &str, parts: &[&str]) -> Option<Self> {
        let Some((id, rest)) = parts.split_first() else {
            return match method {
                "GET" => Some(Self::ListSets),
                "POST" => Some(Self::CreateSet),
                _ => None,
            };
        };
        let id = id.parse().ok()?;
        match (method, rest) {
            ("GET", []) => Some(Self::GetSet(id)),
            ("PATCH", []) => Some(Self::UpdateSet(id)),
            ("DELETE", []) => Some(Self::DeleteSet(id)),
            ("POST", ["generatejitconfig"]) => Some(Self::GenerateJitConfig(id)),
            ("POST", ["sessions"]) => Some(Self::CreateSession(id)),
            ("PATCH", ["sessions", name]) => Some(Self::RefreshSession(id, (*name).to_owned())),
            ("DELETE", ["sessions", name]) => Some(Self::DeleteSession(id, (*name).to_owned())),
            ("POST", ["acquirejobs"]) => Some(Self::AcquireJobs(id)),
            ("GET", ["acquirablejobs"]) => Some(Self::AcquirableJobs(id)),
            _ => None,
        }
    }

    fn of_agents(method: &str, parts: &[&str]) -> Option<Self> {
        match (method, parts) {
            ("GET", []) => Some(Self::ListAgents),
            ("GET", [id]) => id.parse().ok().map(Self::GetAgent),
            ("DELETE", [id]) => id.parse().ok().map(Self::DeleteAgent),
            _ => None,
        }
    }

    /// The name in the log of requests.
    fn id(&self) -> &'static str {
        match self {
            Self::AdminConnection => "scale-sets/admin-connection",
            Self::ListSets => "scale-sets/list",
            Self::GetSet(_) => "scale-sets/get",
            Self::CreateSet => "scale-sets/create",
            Self::UpdateSet(_) => "scale-sets/update",
            Self::DeleteSet(_) => "scale-sets/delete",
            Self::ListGroups => "scale-sets/list-runner-groups",
            Self::GenerateJitConfig(_) => "scale-sets/generate-jit-config",
            Self::ListAgents => "scale-sets/list-runners",
            Self::GetAgent(_) => "scale-sets/get-runner",
            Self::DeleteAgent(_) => "scale-sets/delete-runner",
            Self::CreateSession(_) => "scale-sets/create-session",
            Self::RefreshSession(..) => "scale-sets/refresh-session",
            Self::DeleteSession(..) => "scale-sets/delete-session",
            Self::AcquireJobs(_) => "scale-sets/acquire-jobs",
            Self::AcquirableJobs(_) => "scale-sets/list-acquirable-jobs",
            Self::GetMessage => "scale-sets/get-message",
            Self::AcknowledgeMessage(_) => "scale-sets/acknowledge",
        }
    }
}

/// Whether a path belongs to the service.
pub(crate) fn answers(path: &str) -> bool {
    path.starts_with(TENANT) || path.strip_prefix(ENTERPRISE_PREFIX).unwrap_or(path) == REGISTRATION
}

pub(crate) async fn handle(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<HttpBody>, Dropped> {
    let incoming = exchange::read(request, peer.ip()).await?;
    let operation = Operation::find(&incoming.method, &incoming.path);
    let notice = notice(&shared, &incoming, operation.as_ref());
    if let Some(replaced) = exchange::before(&shared, &incoming, &notice).await? {
        return Ok(replaced);
    }
    let answer = match &operation {
        Some(Operation::GetMessage) => queue::next(&shared, &incoming).await,
        Some(operation) => carry_out(&shared, &incoming, operation),
        None => Answer::not_found(),
    };
    let mark = if notice.counts {
        "x-github-request-id"
    } else {
        "activityid"
    };
    let outcome = Outcome {
        answer: answer.with(mark, format!("SIM:{}", notice.number)),
        tag: None,
        counted: notice.counts,
    };
    exchange::after(&shared, &incoming, &notice, outcome)
}

fn notice(shared: &Shared, incoming: &Arrived, operation: Option<&Operation>) -> Notice {
    let mut world = shared.world();
    let number = world.next_request();
    let operation_id = operation.map(Operation::id);
    let credential = credential(&world, incoming);
    let fault = faults::take(
        &mut world.faults,
        Target {
            method: &incoming.method,
            path: &incoming.path,
            operation_id,
            credential: &credential,
        },
    );
    Notice {
        number,
        now: world.now(),
        operation_id: operation_id.map(str::to_owned),
        credential,
        fault,
        counts: operation == Some(&Operation::AdminConnection),
    }
}

/// Who asks, never the secret itself.
fn credential(world: &World, incoming: &Arrived) -> String {
    let secret = secret(incoming);
    if let Some(token) = world.registration_tokens.get(secret) {
        return format!("registration:{}", token.scope);
    }
    if let Some(token) = world.admin_tokens.get(secret) {
        return format!("scale-sets:{}", token.scope);
    }
    let listener = world.scale_sets.values().find(|set| {
        set.session
            .as_ref()
            .is_some_and(|session| session.tokens.contains_key(secret))
    });
    match listener {
        Some(set) => format!("listener:{}", set.name),
        None if secret.is_empty() => "anonymous".to_owned(),
        None => "unknown".to_owned(),
    }
}

fn carry_out(shared: &Shared, incoming: &Arrived, operation: &Operation) -> Answer {
    let mut world = shared.world();
    let world = &mut *world;
    let now = world.now();
    let answer = decide(world, incoming, operation, now).unwrap_or_else(|refused| refused);
    engine::pump(world, now);
    answer
}

fn decide(
    world: &mut World,
    incoming: &Arrived,
    operation: &Operation,
    now: Timestamp,
) -> Result<Answer, Answer> {
    match operation {
        Operation::AdminConnection => return connection::open(world, incoming, now),
        Operation::AcknowledgeMessage(id) => return queue::acknowledge(world, incoming, *id, now),
        Operation::AcquireJobs(id) => return queue::acquire(world, incoming, *id, now),
        _ => {}
    }
    let call = authorize(world, incoming, now)?;
    match operation {
        Operation::ListSets => Ok(sets::list(world, &call)),
        Operation::GetSet(id) => sets::get(world, &call, *id),
        Operation::CreateSet => sets::create(world, &call),
        Operation::UpdateSet(id) => sets::update(world, &call, *id),
        Operation::DeleteSet(id) => sets::delete(world, &call, *id),
        Operation::ListGroups => Ok(sets::groups(world, &call)),
        Operation::GenerateJitConfig(id) => agents::generate(world, &call, *id),
        Operation::ListAgents => Ok(agents::list(world, &call)),
        Operation::GetAgent(id) => agents::get(world, &call, *id),
        Operation::DeleteAgent(id) => agents::delete(world, &call, *id),
        Operation::CreateSession(id) => sessions::create(world, &call, *id),
        Operation::RefreshSession(id, name) => sessions::refresh(world, &call, *id, name),
        Operation::DeleteSession(id, name) => sessions::delete(world, &call, *id, name),
        Operation::AcquirableJobs(id) => queue::acquirable(world, &call, *id),
        _ => Err(Answer::not_found()),
    }
}
