//! Where pods reach the registrar.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use super::ServerNames;
use crate::config::Config;
use crate::error::RunError;
use crate::insist::{insist, passes};

/// The address of the registrar, and the names for its certificate.
///
/// Pods get the Service's address and not its name: a gate then needs no cluster DNS.
pub async fn registrar_address(
    config: &Config,
    client: &Client,
) -> Result<(String, ServerNames), RunError> {
    if let Some(url) = &config.registrar_url {
        let host = url
            .parse::<http::Uri>()
            .ok()
            .and_then(|uri| uri.host().map(|h| h.trim_matches(['[', ']']).to_owned()))
            .ok_or_else(|| RunError::Service {
                service: url.clone(),
                why: "it is no URL".to_owned(),
            })?;
        return Ok((url.trim_end_matches('/').to_owned(), server_names(&host)));
    }
    let (namespace, name) = (&config.operator_namespace, &config.registrar_service);
    let unusable = |why: String| RunError::Service {
        service: format!("{namespace}/{name}"),
        why,
    };
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let service = insist("the registrar's Service", passes, || services.get(name))
        .await
        .map_err(|e| unusable(e.to_string()))?;
    let spec = service.spec.unwrap_or_default();
    let address = spec
        .cluster_ip
        .filter(|ip| ip.parse::<IpAddr>().is_ok())
        .ok_or_else(|| unusable("it has no cluster IP".to_owned()))?;
    let port = spec.ports.iter().flatten().next().map_or(443, |p| p.port);
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.clone()
    };
    let mut names = server_names(&address);
    names.dns.push(format!("{name}.{namespace}.svc"));
    Ok((format!("https://{host}:{port}"), names))
}

fn server_names(host: &str) -> ServerNames {
    match host.parse() {
        Ok(ip) => ServerNames {
            ips: vec![ip],
            dns: vec![],
        },
        Err(_) => ServerNames {
            dns: vec![host.to_owned()],
            ips: vec![],
        },
    }
}
