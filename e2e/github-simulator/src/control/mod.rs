//! The control API below `/_sim/`, and its client for the suites.

mod accounts;
mod client;
mod routes;
mod types;

pub use client::{Client, Error};
pub(crate) use routes::router;
pub use types::{
    Budget, Clock, JobView, Log, NewApp, NewBranch, NewCredential, NewEnterprise, NewJob,
    NewOrganization, NewRepository, NewRun, NewRunner, NewRunnerGroup, NewWorkflow, Problem,
    PublishedApp, PublishedInstallation, PublishedToken, ScaleSetView, StartedRun, State, StepView,
    UpdateInstallation, UpdateRepository, UpdateWorkflow,
};
