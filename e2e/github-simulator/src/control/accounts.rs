//! Making repositories, organizations, Apps and tokens.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};

use super::types::{
    NewApp, NewBranch, NewCredential, NewEnterprise, NewOrganization, NewRepository,
    NewRunnerGroup, NewWorkflow, PublishedApp, UpdateRepository,
};
use crate::{
    fixtures,
    state::{
        App, Branch, Credential, CredentialKind, Enterprise, Installation, Level, Organization,
        Protection, Repository, RunnerGroup, Workflow, World,
    },
    text,
};

/// What an App of the operator asks for.
const WANTED: [(&str, Level); 6] = [
    ("actions", Level::Write),
    ("administration", Level::Write),
    ("checks", Level::Write),
    ("contents", Level::Read),
    ("metadata", Level::Read),
    ("organization_self_hosted_runners", Level::Write),
];

fn lower(names: Option<BTreeSet<String>>) -> Option<BTreeSet<String>> {
    names.map(|names| names.iter().map(|name| name.to_lowercase()).collect())
}

/// Makes an organization, or changes the groups of one.
pub(super) fn organization(world: &mut World, new: NewOrganization) {
    let key = new.login.to_lowercase();
    let groups = groups(world, new.groups);
    let id = world
        .organizations
        .get(&key)
        .map(|organization| organization.id);
    let id = id.unwrap_or_else(|| world.next_id());
    world.organizations.insert(
        key,
        Organization {
            id,
            login: new.login,
            groups,
        },
    );
}

/// Makes an enterprise, or changes one.
pub(super) fn enterprise(world: &mut World, new: NewEnterprise) {
    let groups = groups(world, new.groups);
    let id = world.next_id();
    world.enterprises.insert(
        new.slug.to_lowercase(),
        Enterprise {
            id,
            slug: new.slug,
            organizations: lower(Some(new.organizations)).unwrap_or_default(),
            groups,
        },
    );
}

fn groups(world: &mut World, new: Vec<NewRunnerGroup>) -> BTreeMap<u64, RunnerGroup> {
    let mut groups = BTreeMap::from([(1, RunnerGroup::default_group())]);
    for group in new {
        let id = world.next_id();
        groups.insert(
            id,
            RunnerGroup {
                id,
                name: group.name,
                selected: lower(group.selected),
            },
        );
    }
    groups
}

/// Makes a repository.
pub(super) fn repository(world: &mut World, new: NewRepository) -> Result<(), String> {
    let key = new.full_name.to_lowercase();
    if key.split('/').filter(|part| !part.is_empty()).count() != 2 {
        return Err(format!("{} is not owner/name", new.full_name));
    }
    if world.repositories.contains_key(&key) {
        return Err(format!("{} exists", new.full_name));
    }
    let owner = new.full_name.split('/').next().unwrap_or_default();
    if !world.organizations.contains_key(&owner.to_lowercase()) {
        organization(
            world,
            NewOrganization {
                login: owner.to_owned(),
                groups: Vec::new(),
            },
        );
    }
    let branches = if new.branches.is_empty() {
        vec![NewBranch {
            name: "main".to_owned(),
            ..NewBranch::default()
        }]
    } else {
        new.branches
    };
    let default_branch = branches
        .first()
        .map(|branch| branch.name.clone())
        .unwrap_or_default();
    let id = world.next_id();
    let workflows = new
        .workflows
        .into_iter()
        .map(|workflow| make_workflow(world, workflow).map(|made| (made.id, made)))
        .collect::<Result<_, _>>()?;
    let created_at = world.now();
    world.repositories.insert(
        key,
        Repository {
            id,
            full_name: new.full_name,
            private: new.private,
            paid_plan: !new.free_plan,
            default_branch,
            branches: branches.into_iter().map(make_branch).collect(),
            workflows,
            rulesets: BTreeMap::new(),
            reported: BTreeSet::new(),
            secrets: BTreeMap::new(),
            created_at,
        },
    );
    Ok(())
}

/// Changes a repository.
pub(super) fn update_repository(
    world: &mut World,
    name: &str,
    update: UpdateRepository,
) -> Result<(), String> {
    let workflows: Vec<Workflow> = update
        .workflows
        .into_iter()
        .map(|workflow| make_workflow(world, workflow))
        .collect::<Result<_, _>>()?;
    let repository = world
        .repository_mut(name)
        .ok_or_else(|| format!("no repository {name}"))?;
    repository.private = update.private.unwrap_or(repository.private);
    repository.paid_plan = update
        .free_plan
        .map_or(repository.paid_plan, |free_plan| !free_plan);
    repository
        .branches
        .extend(update.branches.into_iter().map(make_branch));
    for name in &update.remove_branches {
        repository.branches.remove(name);
    }
    repository.secrets.extend(update.secrets);
    for workflow in workflows {
        repository
            .workflows
            .retain(|_, other| other.path != workflow.path);
        repository.workflows.insert(workflow.id, workflow);
    }
    Ok(())
}

fn make_branch(new: NewBranch) -> (String, Branch) {
    let protection = match new.required_checks {
        Some(checks) => {
            let contexts: Vec<&str> = checks.iter().map(String::as_str).collect();
            Some(fixtures::protection(&contexts))
        }
        None if new.protected => Some(Protection {
            required_status_checks: None,
            ..fixtures::protection(&[])
        }),
        None => None,
    };
    let branch = Branch {
        sha: text::random_hex(20),
        protection,
    };
    (new.name, branch)
}

/// What the text of a file says.
fn read_workflow(new: &mut NewWorkflow) -> Result<(), String> {
    let Some(content) = new.content.as_ref().filter(|_| new.jobs.is_empty()) else {
        return Ok(());
    };
    let file = workflow_file::File::parse(content).map_err(|error| error.to_string())?;
    new.name = if file.name.is_empty() {
        format!(".github/workflows/{}", new.file)
    } else {
        file.name
    };
    new.events = file.events.into_iter().collect();
    new.concurrency = file.concurrency;
    new.jobs = file.jobs.into_iter().map(Into::into).collect();
    Ok(())
}

fn make_workflow(world: &mut World, mut new: NewWorkflow) -> Result<Workflow, String> {
    read_workflow(&mut new)?;
    let id = world.next_id();
    let mut events = new.events;
    if events.is_empty() {
        events.insert("workflow_dispatch".to_owned());
    }
    let content = new.content.unwrap_or_else(|| {
        fixtures::workflow_file(&new.name, &events, new.concurrency.as_deref(), &new.jobs)
    });
    Ok(Workflow {
        id,
        path: format!(".github/workflows/{}", new.file),
        name: new.name,
        content,
        state: "active".to_owned(),
        events,
        branches: new.branches,
        concurrency: new.concurrency,
        jobs: new.jobs,
        runs: 0,
        created_at: world.now(),
    })
}

/// Makes an App with a fresh key, and installs it where that is wanted.
pub(super) fn app(world: &mut World, new: NewApp) -> Result<PublishedApp, String> {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
        .map_err(|error| format!("no RSA key: {error}"))?;
    let id = world.next_id();
    let client_id = format!("Iv23{}", text::random_hex(8));
    let permissions = new
        .permissions
        .unwrap_or_else(|| WANTED.map(|(name, level)| (name.to_owned(), level)).into());
    world.apps.insert(
        id,
        App {
            id,
            client_id: client_id.clone(),
            slug: new.slug,
            owner: new.owner,
            public_keys: vec![key.public_key_pem()],
            permissions,
            created_at: world.now(),
        },
    );
    let installed = if new.install_on.is_empty() {
        None
    } else {
        Some(install(world, id, new.install_on, new.repositories)?)
    };
    Ok(PublishedApp {
        id,
        client_id,
        private_key: pkcs1(&key.serialize_der())?,
        installation: installed,
    })
}

/// Length of what PKCS#8 puts before the PKCS#1 key of 2048 bits: version, algorithm, and the
/// headers of two long sequences.
const PKCS8_HEADER: usize = 26;

/// GitHub gives keys as PKCS#1, which not every library takes for granted.
fn pkcs1(pkcs8: &[u8]) -> Result<String, String> {
    let inner = pkcs8
        .get(PKCS8_HEADER..)
        .filter(|inner| inner.starts_with(&[0x30, 0x82]))
        .ok_or("the key is not an RSA key of 2048 bits")?;
    let text = STANDARD.encode(inner);
    let mut pem = String::from("-----BEGIN RSA PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END RSA PRIVATE KEY-----\n");
    Ok(pem)
}

/// Installs an App on an account, for these repositories or all of them; it is granted what it asks for.
fn install(
    world: &mut World,
    app: u64,
    account: String,
    repositories: Option<BTreeSet<String>>,
) -> Result<u64, String> {
    let permissions = world
        .apps
        .get(&app)
        .map(|app| app.permissions.clone())
        .ok_or_else(|| format!("no App {app}"))?;
    let id = world.next_id();
    let created_at = world.now();
    world.installations.insert(
        id,
        Installation {
            id,
            app_id: app,
            account,
            repositories: lower(repositories),
            permissions,
            suspended_at: None,
            created_at,
        },
    );
    Ok(id)
}

/// Makes a personal token; one of the same name ends.
pub(super) fn credential(world: &mut World, new: NewCredential) -> Result<String, String> {
    let (prefix, kind) = match (new.scopes, new.permissions) {
        (Some(scopes), None) => (
            "ghp_",
            CredentialKind::Classic {
                scopes,
                admin: new.admin,
            },
        ),
        (None, Some(permissions)) => ("github_pat_", CredentialKind::FineGrained { permissions }),
        _ => return Err("a token has either scopes or permissions".to_owned()),
    };
    world
        .credentials
        .retain(|_, credential| credential.name != new.name);
    let secret = format!("{prefix}{}", text::random_hex(18));
    world.credentials.insert(
        secret.clone(),
        Credential {
            login: "octocat".to_owned(),
            name: new.name,
            kind,
            repositories: lower(new.repositories),
        },
    );
    Ok(secret)
}

/// Adds the workflow that single jobs of tests belong to.
pub(super) fn ad_hoc_workflow(
    world: &mut World,
    repository: &str,
    file: &str,
) -> Result<u64, String> {
    let workflow = make_workflow(
        world,
        NewWorkflow {
            name: "ad-hoc".to_owned(),
            file: file.to_owned(),
            ..NewWorkflow::default()
        },
    )?;
    let id = workflow.id;
    world
        .repository_mut(repository)
        .ok_or_else(|| format!("no repository {repository}"))?
        .workflows
        .insert(id, workflow);
    Ok(id)
}
