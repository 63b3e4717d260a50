//! What a container hook is given, and what its answers do.

use serde_json::{Value, json};

use super::*;

/// What the hook has to be given, as a whole.
fn golden(command: &str) -> Value {
    let text = match command {
        "prepare_job" => include_str!("golden/prepare_job.json"),
        "run_script_step" => include_str!("golden/run_script_step.json"),
        "cleanup_job" => include_str!("golden/cleanup_job.json"),
        other => panic!("there is no file for {other}"),
    };
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_a_hook_is_told_of_the_containers() {
    let home = Home::with_hook("prepare");
    let seen = home.run(
        "
    strategy: {matrix: {cuda: ['12.4']}}
    container:
      image: nvcr.io/nvidia/cuda:${{ matrix.cuda }}
      credentials: {username: '${{ github.actor }}', password: '${{ secrets.TOKEN }}'}
      env: {DEBUG: 1, HOME: /root}
      ports: ['8080:80']
      volumes: ['data:/data', '/cache:ro']
      options: --gpus all  --shm-size=1g
    services:
      redis: {image: redis:7, ports: [6379], entrypoint: /run, command: a  b}
      db: ghcr.io/acme/db
    steps: [{run: make}]
",
    );
    assert_eq!(seen.calls[0], golden("prepare_job"));
    assert_eq!(seen.conclusion, Conclusion::Success, "{}", seen.log);
    assert!(!seen.log.contains("s3cret"), "{}", seen.log);
}

#[test]
fn what_a_hook_is_told_of_a_script() {
    let home = Home::with_hook("script");
    home.answers(
        "prepare_job",
        r#"echo '{"isAlpine":false,"state":{"pod":"a"}}' > "$response""#,
    );
    // The shell's quotes stay where the arguments are cut, and a value that is one of the agent's paths becomes the
    // container's.
    let seen = home.run(
        r#"
    container: ubuntu
    env: {LEVEL: job, WHERE: '${{ runner.temp }}'}
    steps:
      - run: make
        env: {LEVEL: step, TOKEN: '${{ secrets.TOKEN }}'}
        shell: env "A=b c" sh {0}
        working-directory: sub
"#,
    );
    assert_eq!(seen.calls[1], golden("run_script_step"));
    assert_eq!(seen.calls[2], golden("cleanup_job"));
    // The script lies where the container looks for it
    let script = home
        .root
        .join("_work/_temp/00000000-0000-4000-8000-000000000003");
    assert_eq!(fs::read_to_string(script).unwrap(), "make");
}

#[test]
fn shells_of_a_container_are_those_of_its_image() {
    let table = [
        ("", "sh", json!(["-e", "SCRIPT.sh"])),
        (
            "shell: bash",
            "bash",
            json!(["--noprofile", "--norc", "-e", "-o", "pipefail", "SCRIPT.sh"]),
        ),
        ("shell: python", "python", json!(["SCRIPT.py"])),
        ("shell: 'perl -w {0}'", "perl", json!(["-w", "SCRIPT"])),
    ];
    for (shell, program, arguments) in table {
        let home = Home::with_hook("shells");
        let seen = home.run(&format!(
            "    container: x\n    steps:\n      - run: make\n        {shell}\n"
        ));
        let args = &seen.calls[1]["args"];
        let script = "/__w/_temp/00000000-0000-4000-8000-000000000003";
        let seen: Value =
            serde_json::from_str(&args["entryPointArgs"].to_string().replace(script, "SCRIPT"))
                .unwrap();
        assert_eq!(
            (&args["entryPoint"], &seen),
            (&json!(program), &arguments),
            "{shell}"
        );
    }
}

#[test]
fn an_action_runs_on_the_agents_node_in_the_container() {
    for (alpine, node) in [
        (false, "/__e/node24/bin/node"),
        (true, "/__e/node24_alpine/bin/node"),
    ] {
        let home = Home::with_hook("action");
        home.answers(
            "prepare_job",
            &format!("echo '{{\"isAlpine\":{alpine}}}' > \"$response\""),
        );
        // The action keeps something for its next stage, on the agent's side
        home.answers(
            "run_script_step",
            r#"echo "kept=$GITHUB_ACTION" >> "$GITHUB_STATE""#,
        );
        let seen = home.run(
            "
    container: x
    steps:
      - uses: simulated/stages@v1
        with: {exit-main: 0}
",
        );
        assert_eq!(
            seen.commands(),
            [
                "prepare_job",
                "run_script_step",
                "run_script_step",
                "run_script_step",
                "cleanup_job"
            ]
        );
        for (call, stage) in seen.calls[1..4].iter().zip(["pre", "main", "post"]) {
            let args = &call["args"];
            assert_eq!(args["entryPoint"], node);
            let script = format!("/__w/_actions/simulated/stages/v1/dist/{stage}.js");
            assert_eq!(args["entryPointArgs"], json!([script]));
            assert_eq!(args["workingDirectory"], "/__w/cuda/cuda");
            let environment = &args["environmentVariables"];
            assert_eq!(environment["INPUT_EXIT-MAIN"], "0");
            assert_eq!(environment["GITHUB_ACTION_REPOSITORY"], "simulated/stages");
            assert_eq!(environment["ACTIONS_RUNTIME_TOKEN"], "ghs_token");
            let kept = if stage == "pre" {
                Value::Null
            } else {
                json!("__simulated_stages")
            };
            assert_eq!(environment["STATE_kept"], kept, "{stage}");
        }
        assert!(
            home.root
                .join("_work/_actions/simulated/stages/v1/dist/pre.js")
                .is_file()
        );
    }
}

#[test]
fn a_docker_action_is_a_container_of_its_own_in_any_job() {
    for container in ["container: x", "env: {}"] {
        let home = Home::with_hook("docker");
        let seen = home.run(&format!(
            "    {container}
    steps:
      - uses: docker://alpine:3
        with: {{args: echo  hello, entrypoint: /bin/sh}}
"
        ));
        let call = seen
            .calls
            .iter()
            .find(|call| call["command"] == "run_container_step")
            .unwrap();
        assert_eq!(call["state"], Value::Null);
        let args = &call["args"];
        assert_eq!(args["image"], "alpine:3");
        assert_eq!(args["entryPoint"], "/bin/sh");
        assert_eq!(args["entryPointArgs"], json!(["echo", "hello"]));
        assert_eq!(args["workingDirectory"], "/github/workspace");
        let environment = &args["environmentVariables"];
        for (name, value) in [
            ("HOME", "/github/home"),
            ("GITHUB_WORKSPACE", "/github/workspace"),
            ("GITHUB_EVENT_PATH", "/github/workflow/event.json"),
            ("RUNNER_TEMP", "/github/runner_temp"),
        ] {
            assert_eq!(environment[name], value);
        }
        let env = environment["GITHUB_ENV"].as_str().unwrap();
        assert!(env.starts_with("/github/file_commands/set_env_"), "{env}");
        let targets: Vec<_> = args["systemMountVolumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["targetVolumePath"].as_str().unwrap())
            .collect();
        assert_eq!(
            targets,
            [
                "/var/run/docker.sock",
                "/github/runner_temp",
                "/github/home",
                "/github/workflow",
                "/github/file_commands",
                "/github/workspace",
            ]
        );
    }
}

#[test]
fn the_last_state_that_is_not_null_is_handed_on() {
    let home = Home::with_hook("state");
    home.answers(
        "run_script_step",
        r#"case $n in
        1) echo '{"state":{"pod":"b"}}' ;;
        2) echo '{"state":null}' ;;
        3) rm "$response"; exit 0 ;;
        *) ;;
        esac > "$response""#,
    );
    let seen = home.run("    container: x\n    steps: [{run: a}, {run: b}, {run: c}, {run: d}]\n");
    let states: Vec<_> = seen
        .calls
        .iter()
        .map(|call| call["state"].clone())
        .collect();
    let b = json!({"pod": "b"});
    assert_eq!(
        states,
        [Value::Null, Value::Null, b.clone(), b.clone(), b.clone(), b],
        "{}",
        seen.log
    );
    assert_eq!(seen.conclusion, Conclusion::Success, "{}", seen.log);
}

#[test]
fn services_are_found_by_their_position_and_need_no_container() {
    let home = Home::with_hook("services");
    home.answers(
        "prepare_job",
        r#"echo '{"context":{"services":[{"id":"1","network":"n","ports":{"80":"8080"}},{"id":"2","network":"n","ports":{}}]}}' > "$response""#,
    );
    let job = "
    services: {web: nginx, db: postgres}
    steps: [{run: 'echo port ${{ job.services.web.ports[80] }} of ${{ job.services.db.id }}'}]
";
    let seen = home.run(job);
    assert_eq!(seen.commands(), ["prepare_job", "cleanup_job"]);
    assert_eq!(seen.calls[0]["args"]["container"], Value::Null);
    assert!(seen.log.contains("Z port 8080 of 2\n"), "{}", seen.log);
    assert_eq!(seen.conclusion, Conclusion::Success);
    // Without any answer it fails, and without ports
    for answer in ["", r#"{"context":{"services":[{"id":"1","network":"n"}]}}"#] {
        let home = Home::with_hook("services-null");
        home.answers("prepare_job", &format!("echo '{answer}' > \"$response\""));
        let seen = home.run(job);
        assert!(
            seen.log.contains("##[error]Object reference not set"),
            "{}",
            seen.log
        );
        assert_eq!(seen.conclusion, Conclusion::Failure);
    }
}
