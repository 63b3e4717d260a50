//! Connections: which addresses may be asked.
//!
//! Whoever may write a pool names the server, a proxy, and by the server's answers further addresses. The operator's
//! place in the network is another than theirs, so what only the operator reaches is not asked for them: this is decided
//! when a connection is made, by the address that a name has at that moment.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::{
        self,
        connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::TokioIo,
};
use ipnet::IpNet;
use tokio::net::TcpStream;
use tower::Service;

const CONNECT: Duration = Duration::from_secs(10);
/// Where clouds tell machines who they are, beside the link-local addresses.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Which addresses are asked for the sake of pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Asked whatever else is said.
    pub allowed: Vec<IpNet>,
    /// Not asked, beside what never is.
    pub denied: Vec<IpNet>,
}

/// An address that is not asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the operator does not ask this address for a pool: it is the cluster's or the operator's own; whoever runs the operator can allow it with --allow-github-address"
)]
pub(super) struct OutOfReach;

impl Reach {
    /// Whether this address is asked.
    #[must_use]
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = plain(address);
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        is_in(&self.allowed) || !(is_inner(address) || is_in(&self.denied))
    }
}

/// An IPv4 address that is written as one of IPv6, which leads to the same place.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let mapped = v6.to_ipv4_mapped();
    // The well-known prefix of NAT64.
    let [.., a, b, c, d] = v6.octets();
    let through_nat = v6.segments().starts_with(&[0x64, 0xff9b, 0, 0, 0, 0]);
    let nat64 = through_nat.then(|| Ipv4Addr::new(a, b, c, d));
    mapped.or(nat64).map_or(address, IpAddr::V4)
}

/// Whether an address leads to the machine itself, to its neighbours on the wire, or to what a cloud tells its machines.
fn is_inner(address: IpAddr) -> bool {
    let by_kind = match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0 || v4.is_link_local() || v4.is_broadcast() || v4.is_multicast()
        }
        // The last is where one cloud answers its machines by IPv6.
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    };
    by_kind || address.is_loopback() || address.is_unspecified() || METADATA.contains(&address)
}

/// Resolves names, and leaves out what is not asked.
#[derive(Clone)]
pub(super) struct Resolver {
    reach: Arc<Reach>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (reach, mut system) = (Arc::clone(&self.reach), GaiResolver::new());
        Box::pin(async move {
            let found: Vec<SocketAddr> = system.call(name).await?.collect();
            let asked = found.into_iter().filter(|a| reach.permits(a.ip()));
            let asked: Vec<SocketAddr> = asked.collect();
            if asked.is_empty() {
                return Err(OutOfReach.into());
            }
            Ok(asked.into_iter())
        })
    }
}

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects to what may be asked.
#[derive(Clone)]
pub(super) struct Guarded {
    tcp: HttpConnector<Resolver>,
    reach: Arc<Reach>,
}

impl Guarded {
    pub(super) fn new(reach: Arc<Reach>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver {
            reach: Arc::clone(&reach),
        });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        Self { tcp, reach }
    }
}

impl Service<Uri> for Guarded {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        // An address instead of a name is not resolved.
        let host = server.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        if address.is_ok_and(|address| !self.reach.permits(address)) {
            return Box::pin(async { Err(OutOfReach.into()) });
        }
        let connecting = self.tcp.call(server);
        Box::pin(async move { connecting.await.map_err(Into::into) })
    }
}

/// Whether the server certainly never saw the request.
pub(super) fn connect_failed(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<legacy::Error>())
        .any(legacy::Error::is_connect)
}

/// The innermost causes say what happened; octocrab's own words carry a backtrace.
pub(super) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes: Vec<String> = std::iter::successors(Some(error), |error| error.source())
        .filter(|error| !error.is::<octocrab::Error>() && !error.is::<legacy::Error>())
        .map(ToString::to_string)
        .collect();
    // What a certificate says of its owner is not repeated: a server that is not GitHub may be anybody's.
    if causes
        .iter()
        .any(|cause| cause.contains("NotValidForName") || cause.contains("not valid for name"))
    {
        return "its certificate is for another name".into();
    }
    let text = causes
        .last()
        .cloned()
        .unwrap_or_else(|| "the connection failed".into());
    if causes.iter().any(|cause| cause.contains("UnknownIssuer")) {
        return format!(
            "{text}; give the authority that signed its certificate in spec.github.caBundleRef"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_only_the_operator_reaches_is_not_asked() {
        let reach = Reach {
            allowed: vec![net("10.96.7.0/24"), net("127.0.0.2/32")],
            denied: vec![net("10.96.0.0/12"), net("fd12::/16")],
        };
        for (address, is_asked) in [
            ("140.82.112.5", true),
            ("2606:50c0::1", true),
            ("192.168.7.1", true),
            ("127.0.0.1", false),
            ("127.8.9.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("64:ff9b::7f00:1", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("::", false),
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("ff02::1", false),
            ("10.96.0.1", false),
            ("::ffff:10.96.0.1", false),
            ("fd12::1", false),
            ("10.96.7.9", true),
            ("127.0.0.2", true),
        ] {
            assert_eq!(
                reach.permits(address.parse().unwrap()),
                is_asked,
                "{address}"
            );
        }
    }
}
