//! Which operations of GitHub's description are simulated, by what, and who may call them.

use crate::{
    answer::Answer,
    auth::Need,
    call::Call,
    openapi::{ENTERPRISE_CLOUD, GITHUB_COM},
    rest::{
        apps, checks, contents, hooks, notes, protection, rate_limit, repos, rules, rulesets,
        runners, runs, workflows,
    },
    state::{Level, World},
};

/// What carries out an operation.
pub type Handler = fn(&mut World, &Call) -> Result<Answer, Answer>;

/// One simulated operation.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// The file that describes it.
    pub source: &'static str,
    /// GitHub's name for it.
    pub id: &'static str,
    /// What a caller needs.
    pub need: Need,
    /// What carries it out.
    pub handler: Handler,
}

const fn api(id: &'static str, need: Need, handler: Handler) -> Operation {
    Operation {
        source: GITHUB_COM,
        id,
        need,
        handler,
    }
}

const fn cloud(id: &'static str, need: Need, handler: Handler) -> Operation {
    Operation {
        source: ENTERPRISE_CLOUD,
        id,
        need,
        handler,
    }
}

const METADATA: Need = Need::Repository("metadata", Level::Read);
const ACTIONS: Need = Need::Repository("actions", Level::Read);
const ACTIONS_WRITE: Need = Need::Repository("actions", Level::Write);
const ADMIN: Need = Need::Repository("administration", Level::Read);
const ADMIN_WRITE: Need = Need::Repository("administration", Level::Write);
const CHECKS: Need = Need::Repository("checks", Level::Read);
const CHECKS_WRITE: Need = Need::Repository("checks", Level::Write);
const CONTENTS: Need = Need::Repository("contents", Level::Read);
const HOOKS: Need = Need::Repository("repository_hooks", Level::Read);
const HOOKS_WRITE: Need = Need::Repository("repository_hooks", Level::Write);
const ORG_HOOKS: Need = Need::Organization("organization_hooks", Level::Read);
const ORG_HOOKS_WRITE: Need = Need::Organization("organization_hooks", Level::Write);
const ORG: Need = Need::Organization("organization_self_hosted_runners", Level::Read);
const ORG_WRITE: Need = Need::Organization("organization_self_hosted_runners", Level::Write);

/// All simulated operations.
#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = &[
    // The server and the caller.
    api("meta/get", Need::Anyone, repos::meta),
    api("rate-limit/get", Need::Anyone, rate_limit::get),
    // Apps.
    api("apps/get-authenticated", Need::App, apps::get),
    api("apps/list-installations", Need::App, apps::installations),
    api("apps/get-installation", Need::App, apps::installation),
    api("apps/get-repo-installation", Need::App, apps::of_repository),
    api("apps/get-org-installation", Need::App, apps::of_organization),
    api("apps/get-user-installation", Need::App, apps::of_user),
    api("apps/create-installation-access-token", Need::App, apps::access_token),
    api("apps/revoke-installation-access-token", Need::Anyone, apps::revoke),
    // Repositories, organizations, branches.
    api("repos/get", METADATA, repos::get),
    api("orgs/get", Need::Anyone, repos::organization),
    api("repos/list-branches", CONTENTS, repos::branches),
    api("repos/get-branch", CONTENTS, repos::get_branch),
    api("repos/get-content", CONTENTS, contents::get),
    // Runners of a repository.
    api("actions/create-registration-token-for-repo", ADMIN_WRITE, runners::registration_token),
    api("actions/create-remove-token-for-repo", ADMIN_WRITE, runners::remove_token),
    api("actions/generate-runner-jitconfig-for-repo", ADMIN_WRITE, runners::generate_jitconfig),
    api("actions/list-self-hosted-runners-for-repo", ADMIN, runners::list),
    api("actions/get-self-hosted-runner-for-repo", ADMIN, runners::get),
    api("actions/delete-self-hosted-runner-from-repo", ADMIN_WRITE, runners::delete),
    cloud("actions/get-runner-version-deprecation-for-repo", ADMIN, runners::deprecation),
    // Runners of an organization.
    api("actions/create-registration-token-for-org", ORG_WRITE, runners::registration_token),
    api("actions/create-remove-token-for-org", ORG_WRITE, runners::remove_token),
    api("actions/generate-runner-jitconfig-for-org", ORG_WRITE, runners::generate_jitconfig),
    api("actions/list-self-hosted-runners-for-org", ORG, runners::list),
    api("actions/get-self-hosted-runner-for-org", ORG, runners::get),
    api("actions/delete-self-hosted-runner-from-org", ORG_WRITE, runners::delete),
    api("actions/list-self-hosted-runner-groups-for-org", ORG, runners::organization_groups),
    cloud("actions/get-runner-version-deprecation-for-org", ORG, runners::deprecation),
    // Runners of an enterprise.
    cloud("enterprise-admin/create-registration-token-for-enterprise", Need::Enterprise, runners::registration_token),
    cloud("enterprise-admin/create-remove-token-for-enterprise", Need::Enterprise, runners::remove_token),
    cloud("actions/generate-runner-jitconfig-for-enterprise", Need::Enterprise, runners::generate_jitconfig),
    cloud("enterprise-admin/list-self-hosted-runners-for-enterprise", Need::Enterprise, runners::list),
    cloud("enterprise-admin/get-self-hosted-runner-for-enterprise", Need::Enterprise, runners::get),
    cloud("enterprise-admin/delete-self-hosted-runner-from-enterprise", Need::Enterprise, runners::delete),
    cloud("enterprise-admin/list-self-hosted-runner-groups-for-enterprise", Need::Enterprise, runners::enterprise_groups),
    cloud("enterprise-admin/get-runner-version-deprecation-for-enterprise", Need::Enterprise, runners::deprecation),
    // Workflows, runs, jobs.
    api("actions/list-repo-workflows", ACTIONS, workflows::list),
    api("actions/get-workflow", ACTIONS, workflows::get),
    api("actions/enable-workflow", ACTIONS_WRITE, workflows::enable),
    api("actions/disable-workflow", ACTIONS_WRITE, workflows::disable),
    api("actions/create-workflow-dispatch", ACTIONS_WRITE, workflows::dispatch),
    api("actions/list-workflow-runs-for-repo", ACTIONS, runs::list),
    api("actions/list-workflow-runs", ACTIONS, runs::list_of_workflow),
    api("actions/get-workflow-run", ACTIONS, runs::get),
    api("actions/cancel-workflow-run", ACTIONS_WRITE, runs::cancel),
    api("actions/re-run-job-for-workflow-run", ACTIONS_WRITE, runs::rerun_job),
    api("actions/re-run-workflow-failed-jobs", ACTIONS_WRITE, runs::rerun_failed_jobs),
    api("actions/list-jobs-for-workflow-run", ACTIONS, runs::jobs),
    api("actions/get-job-for-workflow-run", ACTIONS, runs::job),
    api("actions/download-job-logs-for-workflow-run", ACTIONS, runs::logs),
    // Checks.
    api("checks/get-suite", CHECKS, checks::suite),
    api("checks/list-for-suite", CHECKS, checks::of_suite),
    api("checks/list-for-ref", CHECKS, checks::of_commit),
    api("checks/list-suites-for-ref", CHECKS, checks::suites_of_commit),
    api("checks/get", CHECKS, checks::get),
    api("checks/create", CHECKS_WRITE, notes::create),
    // Branch protection.
    api("repos/get-branch-protection", ADMIN, protection::get),
    api("repos/update-branch-protection", ADMIN_WRITE, protection::put),
    api("repos/delete-branch-protection", ADMIN_WRITE, protection::delete),
    api("repos/get-status-checks-protection", ADMIN, protection::get_required),
    api("repos/update-status-check-protection", ADMIN_WRITE, protection::patch_required),
    api("repos/remove-status-check-protection", ADMIN_WRITE, protection::delete_required),
    api("repos/get-all-status-check-contexts", ADMIN, protection::get_contexts),
    api("repos/add-status-check-contexts", ADMIN_WRITE, protection::add_contexts),
    api("repos/set-status-check-contexts", ADMIN_WRITE, protection::set_contexts),
    api("repos/remove-status-check-contexts", ADMIN_WRITE, protection::remove_contexts),
    // Webhooks.
    api("repos/list-webhooks", HOOKS, hooks::list),
    api("repos/create-webhook", HOOKS_WRITE, hooks::create),
    api("repos/get-webhook", HOOKS, hooks::get),
    api("repos/update-webhook", HOOKS_WRITE, hooks::update),
    api("repos/delete-webhook", HOOKS_WRITE, hooks::delete),
    api("repos/ping-webhook", HOOKS, hooks::pings),
    api("repos/list-webhook-deliveries", HOOKS, hooks::deliveries),
    api("repos/redeliver-webhook-delivery", HOOKS_WRITE, hooks::redeliver),
    api("orgs/list-webhooks", ORG_HOOKS, hooks::list),
    api("orgs/create-webhook", ORG_HOOKS_WRITE, hooks::create),
    api("orgs/delete-webhook", ORG_HOOKS_WRITE, hooks::delete),
    // Rulesets.
    api("repos/get-repo-rulesets", METADATA, rulesets::list),
    api("repos/create-repo-ruleset", ADMIN_WRITE, rulesets::create),
    api("repos/get-repo-ruleset", METADATA, rulesets::get),
    api("repos/update-repo-ruleset", ADMIN_WRITE, rulesets::update),
    api("repos/delete-repo-ruleset", ADMIN_WRITE, rulesets::delete),
    api("repos/get-branch-rules", METADATA, rules::of_branch),
];

/// The simulated operation of that name.
#[must_use]
pub fn find(id: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.id == id)
}
