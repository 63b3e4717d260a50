//! A gRPC service that the kubelet calls: what `tonic` asks for beside its methods, once for all plugins.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use tonic::{Status, body::Body, codegen::http, server::NamedService};

/// The methods of one service.
pub(crate) trait Methods: Clone + Send + Sync + 'static {
    /// The service's full name, with its package.
    const NAME: &'static str;

    /// Answers a call; the path is `/NAME/METHOD`.
    fn answer(self, call: http::Request<Body>)
    -> impl Future<Output = http::Response<Body>> + Send;
}

/// The service with these methods.
#[derive(Clone)]
pub(crate) struct Service<M>(pub(crate) M);

impl<M: Methods> NamedService for Service<M> {
    const NAME: &'static str = M::NAME;
}

impl<M: Methods> tower::Service<http::Request<Body>> for Service<M> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: http::Request<Body>) -> Self::Future {
        self.0.clone().answer(call).map(Ok).boxed()
    }
}

/// A method that no kubelet of the tests calls.
pub(crate) fn unused(path: &str) -> http::Response<Body> {
    Status::unimplemented(format!("{path} is not used by this plugin")).into_http()
}
