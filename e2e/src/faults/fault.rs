//! The faults, and which of them fit which request.

use std::{fmt, time::Duration};

use clap::ValueEnum;

use super::request::{Kind, Server};

/// How long a slow answer takes: longer than the operator's own deadline for a request.
pub(super) const DELAY: Duration = Duration::from_secs(35);
/// How long a server is away.
pub(super) const OUTAGE: Duration = Duration::from_secs(20);
/// How long a replica hangs, or hears nothing: longer than its lease.
pub(super) const PAST_THE_LEASE: Duration = Duration::from_secs(45);
/// How long a watch holds its events back.
pub(super) const STALL: Duration = Duration::from_secs(25);

/// What goes wrong with one request, or with one event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The operator is killed before the request is forwarded.
    KillBefore,
    /// The operator is killed after the server has answered, and before it hears of it.
    KillAfter,
    /// The server has acted, and its answer is lost.
    Lost,
    /// 500, and nothing was done.
    #[value(name = "500")]
    InternalError,
    /// 503, and nothing was done.
    #[value(name = "503")]
    Unavailable,
    /// 429, and nothing was done.
    #[value(name = "429")]
    TooMany,
    /// 409, and nothing was done.
    #[value(name = "409")]
    Conflict,
    /// The request reaches the server after 35 s, whether or not somebody still waits for its answer.
    Delay,
    /// The server is away for 20 s, from this request on.
    Outage,
    /// Of two replicas, this one is stopped for 45 s, and then goes on where it was.
    Hang,
    /// Of two replicas, this one does not reach the API server for 45 s.
    Isolated,
    /// The watch holds its events back for 25 s.
    Stall,
    /// The connection of the watch ends before this event.
    Cut,
    /// The watch tells again, before this event, all that it has told so far.
    Rewind,
    /// The watch ends with 410: what it was to go on from is not known any more.
    Gone,
}

impl Fault {
    /// Whether it may happen to this, with so many replicas. Two of them are for what one does not have: another that
    /// takes over, and the lease.
    pub(super) fn fits(self, kind: &Kind, replicas: usize) -> bool {
        let is_about_two = matches!(
            self,
            Self::KillBefore | Self::KillAfter | Self::Hang | Self::Isolated
        );
        if replicas > 1 && !is_about_two && !kind.what.ends_with(":leases") {
            return false;
        }
        match self {
            Self::Hang | Self::Isolated => replicas > 1 && !kind.is_event(),
            Self::Stall | Self::Cut | Self::Rewind => kind.is_event(),
            Self::Gone => kind.is_event() || kind.is_watch(),
            // A read that was killed before it was forwarded is the same as one killed after, and none conflicts.
            Self::KillBefore | Self::Conflict => !kind.reads(),
            Self::KillAfter
            | Self::Lost
            | Self::InternalError
            | Self::Unavailable
            | Self::TooMany
            | Self::Delay
            | Self::Outage => !kind.is_event(),
        }
    }

    /// The answer in place of the server's: status and body.
    pub(super) fn answer(self, server: Server) -> Option<(u16, String)> {
        let (code, reason, message) = match self {
            Self::InternalError => (500, "InternalError", "Internal Server Error"),
            Self::Unavailable => (503, "ServiceUnavailable", "Service Unavailable"),
            Self::TooMany => (429, "TooManyRequests", "Too many requests"),
            Self::Conflict => (409, "Conflict", "Conflict"),
            Self::Gone => (410, "Expired", "The resourceVersion is too old"),
            _ => return None,
        };
        let body = match server {
            Server::Kubernetes => serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code, "reason": reason, "message": message,
            }),
            Server::GitHub => serde_json::json!({"message": message, "status": code.to_string()}),
        };
        Some((code, body.to_string()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(what: &str) -> Kind {
        Kind {
            server: Server::Kubernetes,
            what: what.to_owned(),
        }
    }

    #[test]
    fn faults_fit_what_they_can_happen_to() {
        let of = |what: &str| -> Vec<String> {
            let all = Fault::value_variants().iter();
            all.filter(|fault| fault.fits(&kind(what), 1))
                .map(Fault::to_string)
                .collect()
        };
        assert_eq!(
            of("create:pods"),
            [
                "kill-before",
                "kill-after",
                "lost",
                "500",
                "503",
                "429",
                "409",
                "delay",
                "outage"
            ]
        );
        assert_eq!(
            of("list:pods"),
            ["kill-after", "lost", "500", "503", "429", "delay", "outage"]
        );
        assert_eq!(of("event:pods"), ["stall", "cut", "rewind", "gone"]);
        let two = |what: &str, fault: Fault| fault.fits(&kind(what), 2);
        assert!(two("create:pods", Fault::Hang) && two("list:pods", Fault::Isolated));
        assert!(two("update:leases", Fault::Lost) && !two("create:pods", Fault::Lost));
        assert!(of("watch:pods").contains(&"gone".to_owned()));
    }
}
