//! Which pod is asking.

/// A pod, as the API server vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodIdentity {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// Node of the pod, where the API server says so (Kubernetes 1.30 and later).
    pub node: Option<String>,
}

/// Asks the API server whose token it is, with a `TokenReview`.
#[derive(Clone)]
pub struct Reviewer {}

impl Reviewer {
    /// Asks through this client.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        todo!()
    }
}
