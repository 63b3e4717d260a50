//! `ports:` of a service. The pod has one network, so a service's port is the job's, and is published nowhere.

/// The most ports of one mapping: a range.
const MOST: u16 = 100;

/// A port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) is_tcp: bool,
    /// Where docker would publish it, if that is another.
    pub(super) published: Option<u16>,
}

/// The ports of `[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`, where each may be a range.
pub(super) fn ports(mapping: &str) -> Result<Vec<Port>, String> {
    let wrong = || format!("ports: {mapping} is no port; write it as 6379 or 6379:6379.");
    let (ports, protocol) = mapping.split_once('/').unwrap_or((mapping, "tcp"));
    let (rest, container) = match ports.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, ports),
    };
    // Before the last colon there may be an address.
    let host = rest.and_then(|rest| rest.rsplit(':').next());
    let inside = range(container).ok_or_else(wrong)?;
    let outside = match host.filter(|host| !host.is_empty()) {
        Some(host) => Some(range(host).ok_or_else(wrong)?),
        None => None,
    };
    if !["tcp", "udp", "sctp"].contains(&protocol)
        || outside.is_some_and(|outside| outside.1 - outside.0 != inside.1 - inside.0)
    {
        return Err(wrong());
    }
    Ok((inside.0..=inside.1)
        .map(|number| Port {
            number,
            is_tcp: protocol == "tcp",
            published: outside
                .map(|(first, _)| first + (number - inside.0))
                .filter(|published| *published != number),
        })
        .collect())
}

/// First and last.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last && last - first < MOST).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_are_written_as_docker_does() {
        let tcp = |number, published| Port {
            number,
            is_tcp: true,
            published,
        };
        let udp = Port {
            is_tcp: false,
            ..tcp(53, None)
        };
        for (mapping, expected) in [
            ("6379", vec![tcp(6379, None)]),
            ("6379:6379", vec![tcp(6379, None)]),
            ("16379:6379/tcp", vec![tcp(6379, Some(16379))]),
            ("127.0.0.1:80:8080", vec![tcp(8080, Some(80))]),
            ("127.0.0.1::80", vec![tcp(80, None)]),
            ("[::1]:80:80", vec![tcp(80, None)]),
            ("53:53/udp", vec![udp]),
            (
                "8000-8001:9000-9001",
                vec![tcp(9000, Some(8000)), tcp(9001, Some(8001))],
            ),
        ] {
            assert_eq!(ports(mapping), Ok(expected), "{mapping}");
        }
        for mapping in [
            "", "x", "0", "65536", "1:x", "80/icmp", "2-1", "1-5:1-4", "1-60000", ":", "80:", "-1",
        ] {
            assert!(ports(mapping).is_err(), "{mapping}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9:/a-z.-]{0,30}|\\PC{0,20}") {
            let _ = ports(&text);
        }
    }
}
