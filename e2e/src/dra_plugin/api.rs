//! The kubelet's two services of a DRA plugin, as far as they are used: messages by hand, as the device plugin's are.
//! `k8s.io/kubelet/pkg/apis/pluginregistration/v1` and `.../dra/v1`, at v0.37.

use std::collections::HashMap;

use tokio::sync::watch;
use tonic::{Request, Response, body::Body, codegen::http, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{DRIVER, ENDPOINT, claim::Claims};
use crate::kubelet_service::{Methods, unused};

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    supported_versions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    plugin_registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

/// A claim, as the kubelet names it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Claim {
    #[prost(string, tag = "1")]
    pub(super) namespace: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
}

/// Both requests have this form.
#[derive(Clone, PartialEq, prost::Message)]
struct ClaimsRequest {
    #[prost(message, repeated, tag = "1")]
    claims: Vec<Claim>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PrepareResponse {
    #[prost(map = "string, message", tag = "1")]
    claims: HashMap<String, Prepared>,
}

/// What became of one claim: its devices, or why there are none.
#[derive(Clone, PartialEq, prost::Message)]
struct Prepared {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<PreparedDevice>,
    #[prost(string, tag = "2")]
    error: String,
}

/// A device of a claim, and by which name containerd knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PreparedDevice {
    #[prost(string, repeated, tag = "1")]
    pub(super) request_names: Vec<String>,
    #[prost(string, tag = "2")]
    pub(super) pool_name: String,
    #[prost(string, tag = "3")]
    pub(super) device_name: String,
    #[prost(string, repeated, tag = "4")]
    pub(super) cdi_device_ids: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnprepareResponse {
    #[prost(map = "string, message", tag = "1")]
    claims: HashMap<String, Unprepared>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Unprepared {
    #[prost(string, tag = "1")]
    error: String,
}

/// Tells the kubelet what the plugin is and where it listens.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    /// Whether the kubelet has taken the plugin.
    pub(super) taken: watch::Sender<bool>,
}

impl Registration {
    fn notified(&self, status: &RegistrationStatus) {
        if status.plugin_registered {
            println!("registered {DRIVER} with the kubelet");
        } else {
            eprintln!("the kubelet refused the plugin: {}", status.error);
        }
        self.taken.send_replace(status.plugin_registered);
    }
}

impl Methods for Registration {
    const NAME: &'static str = "pluginregistration.Registration";

    async fn answer(self, call: http::Request<Body>) -> http::Response<Body> {
        match call.uri().path() {
            "/pluginregistration.Registration/GetInfo" => {
                let codec: ProstCodec<PluginInfo, Empty> = ProstCodec::default();
                let method = service_fn(|_: Request<Empty>| async {
                    Ok(Response::new(PluginInfo {
                        kind: "DRAPlugin".to_owned(),
                        name: DRIVER.to_owned(),
                        endpoint: ENDPOINT.to_owned(),
                        supported_versions: vec!["v1.DRAPlugin".to_owned()],
                    }))
                });
                Grpc::new(codec).unary(method, call).await
            }
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                let codec: ProstCodec<Empty, RegistrationStatus> = ProstCodec::default();
                let method = service_fn(|status: Request<RegistrationStatus>| {
                    self.notified(status.get_ref());
                    async { Ok(Response::new(Empty {})) }
                });
                Grpc::new(codec).unary(method, call).await
            }
            path => unused(path),
        }
    }
}

/// The service that the kubelet calls for each pod with a claim.
#[derive(Clone)]
pub(super) struct Plugin {
    pub(super) claims: Claims,
}

impl Plugin {
    /// Every claim that was asked for is in the answer.
    async fn prepare(&self, request: ClaimsRequest) -> PrepareResponse {
        let mut claims = HashMap::new();
        for claim in request.claims {
            let prepared = match self.claims.prepare(&claim).await {
                Ok(devices) => Prepared {
                    devices,
                    error: String::new(),
                },
                Err(error) => Prepared {
                    devices: vec![],
                    error: format!("{error:#}"),
                },
            };
            claims.insert(claim.uid, prepared);
        }
        PrepareResponse { claims }
    }

    fn unprepare(&self, request: ClaimsRequest) -> UnprepareResponse {
        let one = |claim: Claim| {
            let undone = self.claims.unprepare(&claim.uid);
            let error = undone.map_or_else(|error| format!("{error:#}"), |()| String::new());
            (claim.uid, Unprepared { error })
        };
        UnprepareResponse {
            claims: request.claims.into_iter().map(one).collect(),
        }
    }
}

impl Methods for Plugin {
    const NAME: &'static str = "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin";

    async fn answer(self, call: http::Request<Body>) -> http::Response<Body> {
        match call.uri().path() {
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources" => {
                let codec: ProstCodec<PrepareResponse, ClaimsRequest> = ProstCodec::default();
                let method = service_fn(|request: Request<ClaimsRequest>| {
                    let this = self.clone();
                    async move { Ok(Response::new(this.prepare(request.into_inner()).await)) }
                });
                Grpc::new(codec).unary(method, call).await
            }
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources" => {
                let codec: ProstCodec<UnprepareResponse, ClaimsRequest> = ProstCodec::default();
                let method = service_fn(|request: Request<ClaimsRequest>| {
                    let answer = self.unprepare(request.into_inner());
                    async { Ok(Response::new(answer)) }
                });
                Grpc::new(codec).unary(method, call).await
            }
            path => unused(path),
        }
    }
}
