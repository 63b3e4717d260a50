//! The repository that exists from the start: `craton-co/craton-tensor-wasm`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::json;

use crate::{
    state::{
        Branch, Check, JobTemplate, Organization, Protection, Repository, RequiredStatusChecks,
        RunnerGroup, StepTemplate, Workflow, World,
    },
    text,
};

/// Its full name.
pub const TENSOR_WASM: &str = "craton-co/craton-tensor-wasm";

/// The jobs of `cuda.yml`: name, number of tests, and of those the ones that need concurrent
/// managed access. The last job compiles only.
const JOBS: [(&str, u32, u32); 4] = [
    ("cust-unified-memory", 46, 22),
    ("wasi-gpu-cuda", 7, 0),
    ("cudarc-backend", 6, 0),
    ("cuda-oxide-backend", 0, 0),
];

/// One run at a time for each branch.
const GROUP: &str = "cuda-${{ github.ref }}";

/// Adds the organization and its repository.
pub fn tensor_wasm(world: &mut World) {
    let now = world.now();
    let organization = world.next_id();
    world.organizations.insert(
        "craton-co".to_owned(),
        Organization {
            id: organization,
            login: "craton-co".to_owned(),
            groups: BTreeMap::from([(1, RunnerGroup::default_group())]),
        },
    );
    let branches = BTreeMap::from([
        (
            "main".to_owned(),
            Branch {
                sha: text::random_hex(20),
                protection: Some(protection(&["fmt", "test (ubuntu-latest)"])),
            },
        ),
        (
            "dev".to_owned(),
            Branch {
                sha: text::random_hex(20),
                protection: None,
            },
        ),
    ]);
    let id = world.next_id();
    let workflow = cuda_workflow(world);
    world.repositories.insert(
        TENSOR_WASM.to_owned(),
        Repository {
            id,
            full_name: TENSOR_WASM.to_owned(),
            private: false,
            paid_plan: true,
            default_branch: "main".to_owned(),
            branches,
            workflows: BTreeMap::from([(workflow.id, workflow)]),
            rulesets: BTreeMap::new(),
            reported: BTreeSet::new(),
            secrets: BTreeMap::new(),
            created_at: now,
        },
    );
}

fn cuda_workflow(world: &mut World) -> Workflow {
    let events: BTreeSet<String> = ["workflow_dispatch", "pull_request", "push"]
        .map(str::to_owned)
        .into();
    let jobs: Vec<JobTemplate> = JOBS
        .iter()
        .map(|(name, tests, managed)| job(name, *tests, *managed))
        .collect();
    Workflow {
        id: world.next_id(),
        name: "cuda".to_owned(),
        path: ".github/workflows/cuda.yml".to_owned(),
        content: workflow_file("cuda", &events, Some(GROUP), &jobs),
        state: "active".to_owned(),
        events,
        branches: BTreeSet::new(),
        concurrency: Some(GROUP.to_owned()),
        jobs,
        runs: 0,
        created_at: world.now(),
    }
}

/// Protection as a user would have set it, with these required checks.
#[must_use]
pub fn protection(contexts: &[&str]) -> Protection {
    let off = json!({"enabled": false});
    let rest = json!({
        "enforce_admins": off,
        "required_pull_request_reviews": {
            "dismiss_stale_reviews": true,
            "require_code_owner_reviews": false,
            "required_approving_review_count": 1,
            "require_last_push_approval": false,
        },
        "required_linear_history": {"enabled": true},
        "allow_force_pushes": off,
        "allow_deletions": off,
        "required_conversation_resolution": off,
    });
    Protection {
        required_status_checks: Some(RequiredStatusChecks {
            strict: true,
            checks: contexts
                .iter()
                .map(|context| Check {
                    context: (*context).to_owned(),
                    app_id: None,
                })
                .collect(),
        }),
        rest: rest.as_object().cloned().unwrap_or_default(),
    }
}

fn job(name: &str, tests: u32, managed: u32) -> JobTemplate {
    let main = if tests == 0 {
        step("Build", COMPILE)
    } else {
        let script = TEST
            .replace("@SUITE@", &name.replace('-', "_"))
            .replace("@TOTAL@", &tests.to_string())
            .replace("@MANAGED@", &managed.to_string());
        step("Test", &script)
    };
    JobTemplate {
        key: name.to_owned(),
        name: String::new(),
        labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
        steps: vec![step("Device", DEVICE), main],
        hold: false,
        written: None,
    }
}

fn step(name: &str, run: &str) -> StepTemplate {
    StepTemplate {
        name: name.to_owned(),
        run: run.to_owned(),
    }
}

/// The job runs on the device for real; without it, it fails as cargo does.
const DEVICE: &str = r#"export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-/usr/local/nvidia/lib64}"
cuda-smoke check --json > device.json || { code=$?; cat device.json; exit "$code"; }
cat device.json
"#;

/// Tests that need concurrent managed access fail where the device lacks it, as under WDDM.
const TEST: &str = r#"export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-/usr/local/nvidia/lib64}"
suite=@SUITE@ total=@TOTAL@ managed=@MANAGED@
broken=0
if ! cuda-smoke check --json > report.json; then
  broken=$total
elif grep -Eq '"concurrentManagedAccess": *false' report.json; then
  broken=$managed
fi
echo "     Running tests/$suite.rs"
echo
echo "running $total tests"
for number in $(seq 1 "$total"); do
  if [ "$number" -le "$broken" ]; then
    echo "test case_$number ... FAILED"
  else
    echo "test case_$number ... ok"
  fi
done
echo
if [ "$broken" -gt 0 ]; then
  echo "test result: FAILED. $((total - broken)) passed; $broken failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s"
  exit 101
fi
echo "test result: ok. $total passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s"
"#;

const COMPILE: &str = r#"printf 'int main(void) { return 0; }\n' > main.c
cc -o main main.c
./main
echo "    Finished \`test\` profile [unoptimized + debuginfo] target(s) in 0.10s"
"#;

/// The file that such a workflow comes from.
#[must_use]
pub fn workflow_file(
    name: &str,
    events: &BTreeSet<String>,
    concurrency: Option<&str>,
    jobs: &[JobTemplate],
) -> String {
    let mut file = format!("name: {name}\non:\n");
    for event in events {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(file, "  {event}:");
    }
    if let Some(group) = concurrency {
        let _ = writeln!(file, "concurrency:\n  group: {group}");
    }
    file.push_str("jobs:\n");
    for job in jobs {
        let _ = writeln!(file, "  {}:", job.key);
        if !job.name.is_empty() {
            let _ = writeln!(file, "    name: {}", job.name);
        }
        let _ = writeln!(file, "    runs-on: [{}]\n    steps:", job.labels.join(", "));
        for step in &job.steps {
            let _ = writeln!(file, "      - name: {}\n        run: |", step.name);
            for line in step.run.lines() {
                let _ = writeln!(file, "          {line}");
            }
        }
    }
    file
}
