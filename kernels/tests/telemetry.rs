//! What a job's GPUs did is told on the job's page and in a mark, and nothing about it can fail or hold up a job.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::runner::{Pod, giving};
use common::{Running, driver, job, program, smoke, until};
use gate_report::contract::{file, gate};
use gate_report::usage::GpuUsage;
use gate_report::{Device, Report, SUMMARY_LIMIT};
use serde_json::{Value, json};

/// Longer than the sampler lets anybody wait, on a machine that is busy.
const BOUND: Duration = Duration::from_secs(20);
/// What the sampler asks at each look, and nowhere else.
const LOOK: &str = "nvmlDeviceGetTemperature";

fn uuid(number: usize) -> String {
    format!("GPU-0c8a1b2c-0000-4000-8000-{number:012}")
}

/// A driver with these devices, and what goes wrong in it.
fn simulated(devices: &[Value], faults: &Value) -> Value {
    let devices: Vec<Value> = devices
        .iter()
        .enumerate()
        .map(|(number, device)| {
            let mut all = json!({"profile": "h100", "uuid": uuid(number)});
            for (name, value) in device.as_object().unwrap() {
                all[name] = value.clone();
            }
            all
        })
        .collect();
    json!({"devices": devices, "faults": faults})
}

/// What the gate has found.
fn found(folder: &Path, count: usize) {
    let devices = (0..count).map(|number| Device {
        uuid: uuid(number),
        name: "NVIDIA H100 80GB HBM3".into(),
        ..Device::default()
    });
    let report = Report {
        devices: devices.collect(),
        ..Report::new("0")
    };
    fs::write(folder.join(file::PASSED), report.summary()).unwrap();
}

/// The sampler of a container with this driver, as a program that needs no environment.
fn bring(folder: &Path, simulated: &Value) {
    let simcuda = folder.join("simcuda.json");
    fs::write(&simcuda, simulated.to_string()).unwrap();
    let sampler = format!(
        "#!/bin/sh\nexport SIMCUDA=@{} LD_LIBRARY_PATH={}\nexec {} \"$@\"\n",
        simcuda.display(),
        driver().parent().unwrap().display(),
        env!("CARGO_BIN_EXE_cuda-smoke"),
    );
    program(&folder.join(file::SAMPLER), &sampler);
}

/// The same driver, which leaves this file when it is first asked this.
fn leaving(file: &Path, call: &str, simulated: &Value) -> Value {
    let mut all = simulated.clone();
    let faults = all["faults"].as_array_mut().unwrap();
    // Before what goes wrong there.
    faults.insert(0, json!({"call": call, "once": file}));
    all
}

/// A runner's pod whose gate found so many GPUs.
fn pod(count: usize) -> Pod {
    let pod = Pod::passed(&giving());
    let run = pod.dir.join("run").to_string_lossy().into_owned();
    found(Path::new(&run), count);
    fs::write(pod.dir.join("log"), "").unwrap();
    pod.with(gate::REGISTRATION_DIR, &run)
}

/// What a job's hook said.
struct Told {
    printed: String,
    summary: String,
    log: String,
    took: Duration,
    /// For so long the job was watched, at least and at most.
    watched: [Duration; 2],
}

impl Told {
    /// The same in seconds, as the sampler rounds them.
    fn seconds(&self) -> RangeInclusive<u128> {
        let [least, most] = self.watched.map(|time| (time.as_millis() + 500) / 1000);
        least..=most
    }

    fn marks(&self) -> Vec<GpuUsage> {
        let marks = self
            .log
            .lines()
            .filter(|line| line.contains(r#""mark":"gpu""#));
        marks
            .map(|mark| serde_json::from_str(mark).unwrap())
            .collect()
    }
}

/// The hook after a job, in a container with this folder.
fn hook(dir: &Path, folder: &Path) -> Told {
    let summary = dir.join("summary");
    fs::write(&summary, "").unwrap();
    let began = Instant::now();
    let output = Command::new(folder.join(file::RUNNER_INIT))
        .arg("telemetry")
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    Told {
        printed: String::from_utf8(output.stdout).unwrap(),
        summary: read(&summary),
        log: read(&dir.join("log")),
        took: began.elapsed(),
        watched: [Duration::ZERO, Duration::MAX],
    }
}

/// Lets a job run on a runner with this driver until it was looked at and a little longer, and then its hook.
fn ran(simulated: &Value, count: usize) -> Told {
    ran_until(LOOK, simulated, count)
}

/// The same, until the driver was asked this.
fn ran_until(call: &str, simulated: &Value, count: usize) -> Told {
    let pod = pod(count);
    let asked = pod.dir.join("asked");
    bring(&pod.dir.join("run"), &leaving(&asked, call, simulated));
    let mut gpu = pod.gpu("while [ ! -e \"$RUN/end\" ]; do sleep 0.05; done");
    until("watched", || pod.has(file::SAMPLER_SOCKET));
    let began = Instant::now();
    fs::write(pod.run(file::BUSY), "").unwrap();
    until("asked", || asked.exists());
    let looked = Instant::now();
    std::thread::sleep(SHORT);
    let least = looked.elapsed();
    fs::remove_file(pod.run(file::BUSY)).unwrap();
    let mut told = hook(&pod.dir, &pod.dir.join("run"));
    told.watched = [least, began.elapsed()];
    fs::write(pod.run("end"), "").unwrap();
    assert_eq!(gpu.code(), 0);
    told
}

/// What is more than half a second, and less than it takes to the second look.
const SHORT: Duration = Duration::from_millis(1200);

#[test]
fn a_job_is_told_what_each_of_its_gpus_did() {
    let busy = json!({"activity": {
        "utilization": [0, 40, 90], "memoryUsed": 41_u64 << 30, "watts": 700, "clockMhz": 1980, "celsius": 64,
    }});
    // Given a device that is used, another one, and a third which is not this pod's
    let told = ran(&simulated(&[busy, json!({}), json!({})], &json!([])), 2);
    // Then there is a line for each of the pod's, which is a workflow command
    let lines: Vec<&str> = told.printed.lines().collect();
    let [one, two] = lines[..] else {
        panic!("{}", told.printed)
    };
    assert!(
        one.starts_with(
            "::notice title=GPU::NVIDIA H100 80GB HBM3 GPU-0c8a1b2c…: busy 65 %25 (max 90 %25), 41 GiB, "
        ) && one.ends_with(" Wh, 1980 MHz while busy (min 1980), up to 64 °C, throttled 0 s, no errors"),
        "{one}"
    );
    assert!(two.contains("busy 0 %25"), "{two}");
    // And on the run's page
    let rows = told.summary.lines().filter(|line| line.starts_with("- "));
    assert_eq!(rows.count(), 2, "{}", told.summary);
    assert!(told.summary.contains(&uuid(1)), "{}", told.summary);
    // And marks of both
    let marks = told.marks();
    assert_eq!(marks.len(), 2, "{}", told.log);
    let [one, _] = &marks[..] else { panic!() };
    assert_eq!(one.uuid, uuid(0));
    assert_eq!(
        (one.busy_percent, one.memory_mib),
        (Some(65), Some(41 << 10))
    );
    assert!(told.seconds().contains(&one.seconds.into()), "{one:?}");
    let [least, most] = told.watched.map(|time| 700 * time.as_millis() / 1000);
    let joules = u128::from(one.energy_joules.unwrap());
    // Both ends are cut to whole milliseconds.
    assert!((least - 2..=most).contains(&joules), "{joules}");
}

#[test]
fn what_is_wrong_is_a_warning_with_its_name() {
    let row = |device: Value, text: &'static str| (device, text);
    for (device, text) in [
        // Seconds, as long as the job was watched
        row(
            json!({"health": {"clockReasons": 0x44}}),
            "throttled N s (heat N s), no errors",
        ),
        row(
            json!({"activity": {"uncorrectedErrors": [3, 1]}}),
            "2 uncorrected ECC errors",
        ),
        row(
            json!({"activity": {"correctedErrors": [0, 4]}}),
            "corrected ECC errors",
        ),
        row(json!({"activity": {"pcieReplays": [9, 1]}}), "PCIe replays"),
        row(
            json!({"activity": {"xids": [79]}, "health": {"xids": [13]}}),
            "XID 79 (the GPU has fallen off the bus)",
        ),
    ] {
        let told = ran(&simulated(&[device], &json!([])), 1);
        let printed = &told.printed;
        let is_told = |seconds: u128| printed.contains(&text.replace('N', &seconds.to_string()));
        assert!(
            printed.starts_with("::warning title=GPU::") && told.seconds().any(is_told),
            "{text}: {printed}"
        );
        // What was before the job is not the job's.
        assert!(!printed.contains("XID 13"), "{printed}");
    }
}

#[test]
fn what_a_driver_does_not_tell_is_left_out() {
    let nothing = json!({
        "activity": {"utilization": null, "samples": false, "clockMhz": null, "celsius": null, "watts": null,
            "correctedErrors": null, "uncorrectedErrors": null, "pcieReplays": null, "memoryUsed": 0},
        "health": {"clockReasons": null},
    });
    let no_memory = json!([{"call": "nvmlDeviceGetMemoryInfo_v2", "code": 3}]);
    let told = ran(&simulated(&[nothing], &no_memory), 1);
    let end = "GPU-0c8a1b2c…: no errors\n";
    assert!(told.printed.ends_with(end), "{}", told.printed);
    // A driver that keeps no samples says at least how busy it is at a look.
    let device = json!({"activity": {"samples": false, "utilization": [30]}});
    let told = ran(&simulated(&[device], &json!([])), 1);
    assert!(told.printed.contains("busy 30 %25"), "{}", told.printed);
}

#[test]
fn it_looks_every_five_seconds_and_each_second_where_the_driver_remembers_nothing() {
    let forgetful = json!({"activity": {"samples": false, "utilization": [30]}});
    // It sees four times a second whether it is time; of several looks, one is hardly held up.
    for (device, looks, pauses) in [(json!({}), 2, 4.5..f64::MAX), (forgetful, 5, 0.5..4.0)] {
        let pod = pod(1);
        let file = |look: u32| pod.dir.join(format!("look-{look}"));
        let faults = (1..=looks).map(|look| json!({"call": LOOK, "nth": look, "once": file(look)}));
        let looks_at: Vec<_> = faults.collect();
        bring(
            &pod.dir.join("run"),
            &simulated(&[device], &json!(looks_at)),
        );
        let mut gpu = pod.gpu("while [ ! -e \"$RUN/end\" ]; do sleep 0.05; done");
        until("watched", || pod.has(file::SAMPLER_SOCKET));
        // When a job runs, then it is looked at again and again
        fs::write(pod.run(file::BUSY), "").unwrap();
        until("looked at", || file(looks).exists());
        let at = |look| fs::metadata(file(look)).unwrap().modified().unwrap();
        let between = (1..looks).map(|look| at(look + 1).duration_since(at(look)).unwrap());
        let pause = between.min().unwrap().as_secs_f64();
        assert!(pauses.contains(&pause), "{pause} s, and not {pauses:?}");
        fs::write(pod.run("end"), "").unwrap();
        assert_eq!(gpu.code(), 0);
    }
}

#[test]
fn a_driver_that_hangs_or_dies_or_is_not_there_holds_nothing_up() {
    let hang = |call: &str| json!({"call": call, "hang": true});
    for (fault, is_told) in [
        (hang("nvmlInit_v2"), false),
        (json!({"call": "nvmlInit_v2", "code": 9}), false),
        (
            json!({"call": "nvmlDeviceGetHandleByUUID", "code": 15}),
            false,
        ),
        (hang("nvmlDeviceGetSamples"), true),
        (hang("nvmlDeviceGetTotalEnergyConsumption"), true),
        (
            json!({"call": "nvmlDeviceGetMemoryInfo_v2", "crash": "segv"}),
            false,
        ),
    ] {
        let faults = json!([fault]);
        let last = if is_told {
            Some(LOOK)
        } else {
            fault["call"].as_str()
        };
        let told = ran_until(last.unwrap(), &simulated(&[json!({})], &faults), 1);
        assert!(told.took < BOUND, "{faults}: {:?}", told.took);
        assert_eq!(
            !told.printed.is_empty(),
            is_told,
            "{faults}: {}",
            told.printed
        );
        assert_eq!(told.marks().len(), usize::from(is_told), "{faults}");
    }
}

#[test]
fn an_image_in_which_the_sampler_cannot_run_goes_without() {
    let dead = "#!/no/such/interpreter\n";
    for (program, mode) in [(Some(dead), 0o755), (Some("text"), 0o644), (None, 0)] {
        let pod = pod(1);
        if let Some(program) = program {
            fs::write(pod.run(file::SAMPLER), program).unwrap();
            fs::set_permissions(pod.run(file::SAMPLER), fs::Permissions::from_mode(mode)).unwrap();
        }
        let hook = "\"$RUN/bin/runner-init\" telemetry >\"$RUN/../said\" 2>&1";
        assert_eq!(pod.gpu(hook).code(), 0, "{program:?}");
        // The job's says why, where there was one.
        let said = fs::read_to_string(pod.dir.join("said")).unwrap();
        assert_eq!(said.contains("glibc 2.34"), program.is_some(), "{said}");
        assert_eq!(said.lines().count(), usize::from(program.is_some()));
        // The agent's own log has nothing of it.
        let printed = fs::read_to_string(pod.dir.join("output")).unwrap();
        assert_eq!(printed, "", "{program:?}");
    }
}

#[test]
fn the_marks_of_eight_gpus_fit_beside_those_of_a_job() {
    let device = json!({"activity": {"utilization": [100], "memoryUsed": 140_u64 << 30, "watts": 4_000_000,
        "correctedErrors": [0, 999_999], "uncorrectedErrors": [0, 999_999], "pcieReplays": [0, 999_999],
        "xids": [9991, 9992, 9993, 9994]}, "health": {"clockReasons": 0xe4}});
    let devices = vec![device; 8];
    let told = ran(&simulated(&devices, &json!([])), 8);
    assert_eq!(told.marks().len(), 8, "{}", told.log);
    assert!(
        told.log.len() < SUMMARY_LIMIT / 2 + 400,
        "{} bytes",
        told.log.len()
    );
}

#[test]
fn a_full_termination_message_keeps_what_it_has_and_room_for_others() {
    // Given marks of a job that fill most of it
    let pod = pod(8);
    let job = format!(
        "{{\"mark\":\"completed\",\"job\":\"{}\"}}\n",
        "j".repeat(2500)
    );
    fs::write(pod.dir.join("log"), &job).unwrap();
    let gpus: Vec<Value> = (0..8)
        .map(|n| json!({"uuid": uuid(n), "s": 5, "j": 100}))
        .collect();
    fs::write(pod.run(file::USAGE), json!(gpus).to_string()).unwrap();
    // When eight GPUs are told of, and then many more
    let told = hook(&pod.dir, &pod.dir.join("run"));
    assert_eq!(told.marks().len(), 8);
    let many: Vec<Value> = gpus.iter().cycle().take(900).cloned().collect();
    fs::write(pod.run(file::USAGE), json!(many).to_string()).unwrap();
    let told = hook(&pod.dir, &pod.dir.join("run"));
    // Then whole lines are there as far as there is room
    assert!(told.log.starts_with(&job) && told.log.ends_with("}\n"));
    assert!(
        told.log.len() <= SUMMARY_LIMIT - 200,
        "{} bytes",
        told.log.len()
    );
}

#[test]
fn whatever_answers_in_the_samplers_place_is_bounded() {
    let forged = json!([{"uuid": "GPU-1\n::error::x|<img>", "name": "a\u{1b}[2J\n::add-mask::b`c`", "s": 4_000_000_000_u32}]);
    for (answer, lines) in [
        (forged.to_string(), 1),
        (json!([{"uuid": 7}]).to_string(), 0),
        ("[".repeat(1 << 20), 0),
        (String::new(), 0),
    ] {
        let pod = pod(1);
        let listener = UnixListener::bind(pod.run(file::SAMPLER_SOCKET)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(answer.as_bytes());
        });
        let told = hook(&pod.dir, &pod.dir.join("run"));
        server.join().unwrap();
        let printed = &told.printed;
        assert_eq!(printed.lines().count(), lines, "{printed}");
        assert!(!printed.contains('\u{1b}') && !told.summary.contains(['<', '|', '`']));
        assert_eq!(told.marks().len(), lines);
    }
}

#[test]
fn one_who_never_answers_and_files_that_are_none_are_not_waited_for() {
    // Given a socket that takes a connection and says nothing, and a pipe for a summary
    let pod = pod(1);
    let listener = UnixListener::bind(pod.run(file::SAMPLER_SOCKET)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_end(&mut vec![])
    });
    let told = hook(&pod.dir, &pod.dir.join("run"));
    assert!(
        told.took < BOUND && told.printed.is_empty(),
        "{:?}",
        told.took
    );
    let _ = server.join().unwrap();
    let pipe = pod.dir.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    fs::write(
        pod.run(file::USAGE),
        json!([{"uuid": uuid(0), "s": 5}]).to_string(),
    )
    .unwrap();
    let status = Command::new(pod.run(file::RUNNER_INIT))
        .arg("telemetry")
        .env("GITHUB_STEP_SUMMARY", &pipe)
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_persistent_runners_jobs_are_told_apart() {
    let pod = pod(1);
    let device = json!({"activity": {"utilization": [0, 50, 50, 0]}});
    let looked = pod.dir.join("looked");
    let simulated = leaving(&looked, LOOK, &simulated(&[device], &json!([])));
    bring(&pod.dir.join("run"), &simulated);
    let _gpu = pod.gpu("exec sleep 60");
    until("watched", || pod.has(file::SAMPLER_SOCKET));
    for busy in ["busy 50 %25 (max 50 %25)", "busy 0 %25 (max 0 %25)"] {
        fs::write(pod.run(file::BUSY), "").unwrap();
        until("looked at", || looked.exists());
        fs::remove_file(pod.run(file::BUSY)).unwrap();
        let told = hook(&pod.dir, &pod.dir.join("run"));
        assert!(told.printed.contains(busy), "{}", told.printed);
        // Nobody is told twice.
        assert_eq!(hook(&pod.dir, &pod.dir.join("run")).printed, "");
        fs::remove_file(&looked).unwrap();
    }
}

#[test]
fn of_a_shared_gpu_nothing_is_told_that_others_do() {
    let pod = pod(1).with(gate::SHARED, "true");
    let device = json!({"activity": {"utilization": [90], "watts": 700}});
    let looked = pod.dir.join("looked");
    let simulated = leaving(&looked, LOOK, &simulated(&[device], &json!([])));
    bring(&pod.dir.join("run"), &simulated);
    let _gpu = pod.gpu("exec sleep 60");
    until("watched", || pod.has(file::SAMPLER_SOCKET));
    fs::write(pod.run(file::BUSY), "").unwrap();
    until("looked at", || looked.exists());
    let told = hook(&pod.dir, &pod.dir.join("run"));
    let [one] = &told.marks()[..] else {
        panic!("{}", told.log)
    };
    assert_eq!(
        (one.busy_percent, one.memory_mib, one.energy_joules),
        (None, None, None)
    );
    assert_eq!(one.max_celsius, Some(35));
}

#[test]
fn a_job_in_its_own_container_is_told_after_that_is_gone() {
    // Given a job's container, with the sampler in it
    let pod = job::Pod::of_a_job(&job::giving());
    found(&pod.dir.join("run"), 1);
    let device = json!({"activity": {"utilization": [0, 70]}});
    let looked = pod.dir.join("looked");
    let simulated = leaving(&looked, LOOK, &simulated(&[device], &json!([])));
    bring(&pod.dir.join("run"), &simulated);
    let gpu = pod.gpu();
    until("looked at", || looked.exists());
    // When the agent cleans it, and the container ends
    let clean = json!({"command": "cleanup_job", "responseFile": null, "args": {}, "state": null});
    let mut hook_of_the_agent = Command::new(pod.agent(file::RUNNER_INIT))
        .arg("container-hook")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = hook_of_the_agent.stdin.take().unwrap();
    input.write_all(clean.to_string().as_bytes()).unwrap();
    drop(input);
    assert!(hook_of_the_agent.wait().unwrap().success());
    drop(gpu);
    // Then the hook after the job, in the agent's container, tells once what was seen
    fs::write(pod.dir.join("log"), "").unwrap();
    let told = hook(&pod.dir, &pod.dir.join("agent"));
    assert!(told.printed.contains("busy 70 %25"), "{}", told.printed);
    assert_eq!(told.marks().len(), 1);
}

#[test]
fn only_a_running_job_is_watched() {
    // Given a runner without a job, whose driver leaves a file at the first question
    let pod = pod(1);
    let asked = pod.dir.join("asked");
    let fault = json!([{"call": "nvmlInit_v2", "once": asked}]);
    let simulated = simulated(&[json!({})], &fault);
    let mut sampler = smoke(&simulated);
    sampler.arg("sample").arg("--dir").arg(pod.dir.join("run"));
    let _sampler = Running(sampler.spawn().unwrap());
    until("listening", || pod.has(file::SAMPLER_SOCKET));
    // When nothing runs for longer than it takes to see a job
    assert_eq!(hook(&pod.dir, &pod.dir.join("run")).printed, "");
    std::thread::sleep(SHORT);
    assert!(!asked.exists());
    // Then the driver is asked as soon as a job is there
    fs::write(pod.run(file::BUSY), "").unwrap();
    until("asked", || asked.exists());
}
