//! Which steps run, what stops them, and what they leave.

use super::*;
use crate::steps::HOOK_FAILED;

/// What the hooks of a job do, what is called then, and how the steps and the job end.
struct Case {
    started: &'static str,
    prepare: &'static str,
    cleanup: &'static str,
    calls: &'static str,
    steps: [&'static str; 3],
    conclusion: Conclusion,
}

const WHOLE: &str = "started prepare_job run_script_step run_script_step cleanup_job completed";

/// Conditions, hooks of the job and the hook of containers: all goes well; no step fails, but something around them.
const ORDER: [Case; 5] = [
    Case {
        started: "",
        prepare: PREPARED,
        cleanup: "",
        calls: WHOLE,
        steps: ["success", "skipped", "success"],
        conclusion: Conclusion::Success,
    },
    // No containers, and still the steps that always run: the hook hears of them without a job that it has prepared.
    Case {
        started: "exit 3",
        prepare: PREPARED,
        cleanup: "",
        calls: "started run_script_step run_script_step completed",
        steps: ["skipped", "success", "success"],
        conclusion: Conclusion::Failure,
    },
    Case {
        started: "",
        prepare: "exit 1",
        cleanup: "",
        calls: WHOLE,
        steps: ["skipped", "success", "success"],
        conclusion: Conclusion::Failure,
    },
    // An answer without isAlpine is a failure, too.
    Case {
        started: "",
        prepare: r#"echo '{}' > "$response""#,
        cleanup: "",
        calls: WHOLE,
        steps: ["skipped", "success", "success"],
        conclusion: Conclusion::Failure,
    },
    Case {
        started: "",
        prepare: PREPARED,
        cleanup: "exit 1",
        calls: WHOLE,
        steps: ["success", "skipped", "success"],
        conclusion: Conclusion::Failure,
    },
];

#[test]
fn order() {
    for case in ORDER {
        let mut home = Home::with_hook("order");
        home.job_hook("started", case.started);
        home.job_hook("completed", "");
        home.answers("prepare_job", case.prepare);
        home.answers("cleanup_job", case.cleanup);
        let seen = home.run(
            "
    container: x
    steps:
      - {id: a, run: 'true'}
      - {run: 'true', if: failure()}
      - {run: 'true', if: always()}
",
        );
        let around = [case.started, case.prepare, case.cleanup].join("|");
        let shown = format!("{around}: {}", seen.log);
        assert_eq!(seen.commands().join(" "), case.calls, "{shown}");
        assert_eq!(seen.steps, case.steps, "{shown}");
        assert_eq!(seen.conclusion, case.conclusion, "{shown}");
    }
}

#[test]
fn a_failing_step_of_a_container_has_two_errors_in_the_log() {
    let home = Home::with_hook("errors");
    home.answers("run_script_step", "echo from the step; exit 7");
    let seen = home.run(
        "
    container: x
    steps:
      - {id: a, run: make, continue-on-error: true}
      - {run: make, if: steps.a.outcome == 'failure' && steps.a.conclusion == 'success'}
      - {run: make}
",
    );
    assert_eq!(seen.steps, ["success", "failure", "skipped"]);
    for error in [
        "##[error]Process completed with exit code 7.",
        &format!("##[error]{HOOK_FAILED}"),
    ] {
        assert_eq!(seen.log.matches(error).count(), 2, "{error}\n{}", seen.log);
    }
    assert!(seen.log.contains("from the step"));
    assert_eq!(seen.conclusion, Conclusion::Failure);
}

#[test]
fn files_of_a_step_are_read_on_the_agents_side() {
    for container in ["container: x", "env: {}"] {
        let home = Home::with_hook("files");
        home.answers("run_script_step", EXECUTES);
        let seen = home.run(&format!(
            r#"    {container}
    steps:
      - id: one
        run: |
          echo "A=from one" >> "$GITHUB_ENV"
          echo "/opt/one" >> "$GITHUB_PATH"
          echo "/opt/two" >> "$GITHUB_PATH"
          echo "out=value" >> "$GITHUB_OUTPUT"
          echo "Done with ${{{{ secrets.TOKEN }}}}" >> "$GITHUB_STEP_SUMMARY"
          echo "::add-mask::hidden"
          echo "hidden and ${{{{ secrets.TOKEN }}}}"
          echo "::error file=a.rs,line=1::broken"
      - run: echo "$A and ${{{{ env.A }}}}, ${{{{ steps.one.outputs.out }}}}"
"#
        ));
        assert_eq!(seen.steps, ["success", "success"], "{}", seen.log);
        assert_eq!(seen.summaries, ["Done with ***\n", ""]);
        assert!(seen.log.contains("*** and ***"), "{}", seen.log);
        assert!(!seen.log.contains("s3cret"), "{}", seen.log);
        assert!(seen.log.contains("##[error]broken"), "{}", seen.log);
        if container == "env: {}" {
            assert!(
                seen.log.contains("Z from one and from one, value"),
                "{}",
                seen.log
            );
        } else {
            let args = &seen.calls[2]["args"];
            assert_eq!(args["environmentVariables"]["A"], "from one");
            // The one that was added last is the first to be looked into
            assert_eq!(args["prependPath"], json!(["/opt/two", "/opt/one"]));
        }
    }
}

/// Runs a job that is refused before any of it runs; gives its log.
fn refused(home: &mut Home, job: &str) -> String {
    home.job_hook("started", "");
    let seen = home.run(&format!("    {job}\n"));
    let end = (seen.conclusion, seen.calls.len());
    assert_eq!(end, (Conclusion::Failure, 0), "{job}: {}", seen.log);
    seen.log
}

#[test]
fn without_a_hook_there_is_no_docker() {
    for job in [
        "container: x\n    steps: [{run: a}]",
        "services: {a: x}\n    steps: [{run: a}]",
        "steps: [{uses: 'docker://x'}]",
    ] {
        let log = refused(&mut Home::new("docker-less"), job);
        assert!(
            log.contains("##[error]docker: command not found\n"),
            "{job}: {log}"
        );
    }
}

#[test]
fn a_runner_may_demand_a_container() {
    for (job, value) in [
        ("steps: [{run: a}]", "true"),
        ("container: '${{ env.NONE }}'\n    steps: [{run: a}]", "1"),
    ] {
        let mut home = Home::with_hook("demand");
        home.set("ACTIONS_RUNNER_REQUIRE_JOB_CONTAINER", value);
        let log = refused(&mut home, job);
        let words = "##[error]Jobs without a job container are forbidden on this runner, please add a 'container:' to \
                     your job or contact your self-hosted runner administrator.";
        assert!(log.contains(words), "{job}: {log}");
    }
}

#[test]
fn an_action_that_is_not_there_fails_the_job_before_it_begins() {
    for uses in ["acme/unknown@v1", "./local"] {
        let job = format!("steps: [{{uses: {uses}}}]");
        let log = refused(&mut Home::with_hook("unknown"), &job);
        let words = format!("##[error]Unable to resolve action `{uses}`, repository not found");
        assert!(log.contains(&words), "{log}");
    }
}

#[test]
fn without_the_servers_consent_a_hook_is_not_used() {
    let home = Home::with_hook("consent");
    let seen = home.run_with("    container: x\n    steps: [{run: a}]\n", |job| {
        job.container_hooks = false;
    });
    assert!(
        seen.log.contains("docker: command not found"),
        "{}",
        seen.log
    );
}

#[test]
fn conditions_and_limits_of_steps_on_the_agents_side() {
    let home = Home::new("conditions");
    let seen = home.run(
        "
    defaults: {run: {working-directory: sub}}
    steps:
      - {run: mkdir sub, working-directory: .}
      - {run: 'pwd; echo $GITHUB_WORKSPACE'}
      - {id: bad, name: Bad, run: exit 3}
      - {run: echo not this}
      - {run: 'echo failed: ${{ steps.bad.outcome }}', if: failure()}
      - {run: echo never, if: cancelled()}
      - {name: Long, run: sleep 60, if: always(), timeout-minutes: 0.01}
",
    );
    let expected = [
        "success", "success", "failure", "skipped", "success", "skipped", "failure",
    ];
    assert_eq!(seen.steps, expected, "{}", seen.log);
    assert!(seen.log.contains("/cuda/cuda/sub\n"), "{}", seen.log);
    assert!(seen.log.contains("Z failed: failure\n"), "{}", seen.log);
    assert!(
        seen.log
            .contains("##[error]Process completed with exit code 3."),
        "{}",
        seen.log
    );
    assert!(
        seen.log
            .contains("The action 'Long' has timed out after 0.01 minutes."),
        "{}",
        seen.log
    );
}

/// Cancels a job once its hook runs a step; the step says which signals it hears.
fn cancelled(step: &str, shutdown: bool) -> Seen {
    let home = Home::with_hook("cancel");
    home.answers(
        "run_script_step",
        r#"[ "$n" = 1 ] || exit 0
        trap 'echo heard INT; exit 1' INT
        touch "$dir/runs"
        for _ in $(seq 300); do sleep 0.02; done
        echo ran to its end"#,
    );
    let (cancel, flag) = (home.cancel.clone(), home.root.join("runs"));
    let watcher = thread::spawn(move || {
        while !flag.exists() {
            thread::sleep(Duration::from_millis(10));
        }
        if shutdown {
            cancel.shut_down("The runner has received a shutdown signal.");
        } else {
            cancel.set("The run was canceled.");
        }
    });
    let seen = home.run(&format!(
        "    container: x\n    steps:\n      - {step}\n      - {{run: b}}\n      - {{run: c, if: always()}}\n"
    ));
    watcher.join().unwrap();
    seen
}

#[test]
fn a_cancelled_job_stops_its_step_and_runs_what_always_runs() {
    // A step that is stopped in a container ends with the error of its hook
    let seen = cancelled("{run: a}", false);
    assert!(seen.log.contains("heard INT"), "{}", seen.log);
    assert!(seen.log.contains(HOOK_FAILED), "{}", seen.log);
    assert_eq!(
        seen.steps,
        ["failure", "skipped", "success"],
        "{}",
        seen.log
    );
    assert_eq!(
        seen.commands(),
        [
            "prepare_job",
            "run_script_step",
            "run_script_step",
            "cleanup_job"
        ]
    );
    assert_eq!(seen.conclusion, Conclusion::Cancelled);
    // One that always runs goes on
    let seen = cancelled("{run: a, if: always()}", false);
    assert!(seen.log.contains("ran to its end"), "{}", seen.log);
    assert_eq!(
        seen.steps,
        ["success", "skipped", "success"],
        "{}",
        seen.log
    );
    assert_eq!(seen.conclusion, Conclusion::Cancelled);
    // The end of the agent is the end of all
    let seen = cancelled("{run: a, if: always()}", true);
    assert!(seen.log.contains("heard INT"), "{}", seen.log);
    assert_eq!(
        seen.steps,
        ["failure", "skipped", "skipped"],
        "{}",
        seen.log
    );
}

#[test]
fn a_hook_that_hears_nothing_is_killed_after_ten_seconds() {
    let home = Home::with_hook("deaf");
    home.answers("run_script_step", "trap 'echo heard INT' INT; trap 'echo heard TERM' TERM; touch \"$dir/runs\"; while :; do sleep 0.02; done");
    let (cancel, flag) = (home.cancel.clone(), home.root.join("runs"));
    let watcher = thread::spawn(move || {
        while !flag.exists() {
            thread::sleep(Duration::from_millis(10));
        }
        let began = Instant::now();
        cancel.set("The run was canceled.");
        began
    });
    let seen = home.run("    container: x\n    steps: [{run: a}]\n");
    let took = watcher.join().unwrap().elapsed();
    assert!(
        seen.log.contains("heard INT") && seen.log.contains("heard TERM"),
        "{}",
        seen.log
    );
    assert!(
        (Duration::from_secs(10)..Duration::from_mins(1)).contains(&took),
        "{took:?}"
    );
    assert_eq!(seen.conclusion, Conclusion::Cancelled);
}

#[test]
fn the_event_lies_where_a_container_has_it() {
    let home = Home::new("event");
    let seen = home.run("    steps: [{run: 'cat \"$GITHUB_EVENT_PATH\"; env'}]\n");
    assert!(
        seen.log.contains(r#"{"ref":"refs/heads/main"}"#),
        "{}",
        seen.log
    );
    for variable in ["GITHUB_ACTIONS=true", "CI=true", "RUNNER_OS=Linux"] {
        assert!(seen.log.contains(variable), "{variable}\n{}", seen.log);
    }
    assert!(Path::new(&home.root.join("_work/_temp/_github_workflow/event.json")).is_file());
}
