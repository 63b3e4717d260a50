//! The one link between the machine and a cluster's network namespace.
//!
//! A pair of virtual interfaces with four addresses. Inside, the node's address serves pods and us alike; pods,
//! services and iptables rules are all inside, so nothing of them is on the machine.

use std::{fs, net::Ipv4Addr, process::Command};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{Identity, output};

/// A cluster's link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The cluster that it belongs to, written on the interface: interfaces of one name follow each other.
    pub cluster: String,
    /// The interface on the machine.
    pub interface: String,
    /// The machine's address, as the cluster sees it.
    pub machine: Ipv4Addr,
    /// The node's address, as everyone sees it.
    pub node: Ipv4Addr,
}

impl Link {
    fn numbered(number: u8, cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            interface: format!("cuda-e2e{number}"),
            machine: Ipv4Addr::new(10, 213, number, 1),
            node: Ipv4Addr::new(10, 213, number, 2),
        }
    }

    /// Connects the namespace of this process, for this cluster. The first number whose interface does not exist is
    /// taken; creating it is the claim, so two runs cannot take the same one.
    pub fn connect(inside: Identity, cluster: &str) -> Result<Self> {
        let pid = inside.pid.to_string();
        for number in 0..=u8::MAX {
            let link = Self::numbered(number, cluster);
            if link.show().is_ok() {
                continue;
            }
            let claim = [
                "link",
                "add",
                &link.interface,
                "type",
                "veth",
                "peer",
                "name",
                "uplink",
                "netns",
                &pid,
            ];
            if let Err(error) = output(Command::new("ip").args(claim)) {
                if error.to_string().contains("File exists") {
                    continue;
                }
                return Err(error);
            }
            let outside = |args: &[&str]| output(Command::new("ip").args(args)).map(drop);
            let inside = |args: &[&str]| {
                output(
                    Command::new("nsenter")
                        .args(["--target", &pid, "--net", "ip"])
                        .args(args),
                )
                .map(drop)
            };
            outside(&["link", "set", &link.interface, "alias", cluster])?;
            outside(&[
                "address",
                "add",
                &format!("{}/30", link.machine),
                "dev",
                &link.interface,
            ])?;
            outside(&["link", "set", &link.interface, "up"])?;
            inside(&[
                "address",
                "add",
                &format!("{}/30", link.node),
                "dev",
                "uplink",
            ])?;
            inside(&["link", "set", "uplink", "up"])?;
            inside(&["route", "add", "default", "via", &link.machine.to_string()])?;
            return Ok(link);
        }
        bail!(
            "256 clusters run on this machine already: take some down with `cargo e2e down --all`"
        )
    }

    /// The machine's end and the addresses on it, for a person.
    pub fn show(&self) -> Result<String> {
        output(Command::new("ip").args(["-brief", "address", "show", &self.interface]))
    }

    /// Removes it. The end of the namespace would, too, but a moment later: what has the name by then may be another
    /// cluster's.
    pub fn disconnect(&self) {
        let alias = fs::read_to_string(format!("/sys/class/net/{}/ifalias", self.interface));
        if alias.is_ok_and(|alias| alias.trim_end() == self.cluster) {
            // Gone already is as good.
            let _ = output(Command::new("ip").args(["link", "delete", &self.interface]));
        }
    }
}
