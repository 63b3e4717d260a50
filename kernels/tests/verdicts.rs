//! What is tried again, waited for, or looked at more closely before anything is blamed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{driver, failure, faulty, folder, read, side_by_side, smoke, waited, without_driver};
use gate_report::{Class, Confidence, Report, Step};
use serde_json::json;

/// Exit code and report of a command with these arguments.
fn run(mut command: Command, arguments: &[&str]) -> (i32, Report) {
    command.args(["check", "--json", "--memory-walk-mib", "0"]);
    read(&command.args(arguments).output().unwrap())
}

/// A folder of device files with these numbers.
fn device_files(numbers: &[u32]) -> PathBuf {
    let dev = folder("dev");
    for number in numbers {
        fs::write(dev.join(format!("nvidia{number}")), "").unwrap();
    }
    fs::write(dev.join("nvidiactl"), "").unwrap();
    dev
}

/// What the kernel answers with EIO: the other end of a terminal that is locked.
fn locked_terminal() -> (fs::File, PathBuf) {
    use std::os::fd::AsRawFd as _;
    let terminal = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/ptmx")
        .unwrap();
    let mut number = 0_u32;
    // SAFETY: writes one number.
    let told = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
    assert_eq!(told, 0);
    (terminal, PathBuf::from(format!("/dev/pts/{number}")))
}

#[test]
fn a_kernel_that_fails_in_the_second_try_for_the_first_time_has_a_third() {
    for (comes_back, exit) in [(false, 0), (true, 12)] {
        // Given a driver that does not come up in the first process, and a kernel that fails in the next, or from then on
        let marks = folder("once");
        let once = |name: &str| json!(marks.join(name));
        let mut kernel = json!({"call": "cuStreamSynchronize", "code": 719});
        if !comes_back {
            kernel["once"] = once("kernel");
        }
        let start = json!({"call": "cuInit", "code": 999, "once": once("start")});
        let devices = json!({"devices": [{"profile": "a100"}], "faults": [start, kernel]});
        // When
        let (found, report) = run(smoke(&devices), &[]);
        // Then the device is to blame where the kernel has failed twice
        assert_eq!((found, report.attempts), (exit, 3), "{report:?}");
    }
}

#[test]
fn what_a_device_did_after_a_launch_stands_whatever_the_second_try_says() {
    // Given a device that fails a kernel, and that later processes find in need of a reset
    let state = folder("state");
    let fault = json!({"call": "cuStreamSynchronize", "code": 719, "device": 2, "processes": [1, 1], "leaves": 46});
    let devices =
        json!({"devices": [{"profile": "a100", "count": 3}], "faults": [fault], "state": state});
    // When
    let (exit, report) = run(smoke(&devices), &[]);
    // Then it is to blame, by its first fault
    let failure = failure(&report);
    assert_eq!(
        (exit, failure.class, failure.device, failure.code),
        (12, Class::Device, Some(2), Some(719)),
        "{failure:?}"
    );
    assert_eq!((failure.step, report.attempts), (Step::Synchronize, 2));
    assert_eq!(failure.uuid.as_ref(), Some(&report.devices[2].uuid));
    assert!(
        failure.message.contains("The next try") && failure.message.contains("returned 46"),
        "{}",
        failure.message
    );
    // And the next gate finds it busy, which a moment may fix
    let (exit, report) = run(smoke(&devices), &["--wait", "0"]);
    assert_eq!((exit, failure_code(&report)), (11, Some(46)));
}

#[test]
fn what_devices_did_to_each_other_stands_as_well() {
    // Given two devices that fail when they talk, and that later processes find in need of a reset
    for how in [json!({"code": 999}), json!({"crash": "segv"})] {
        let mut fault = json!({"call": "cuMemcpyPeer", "processes": [1, 1], "leaves": 46});
        fault
            .as_object_mut()
            .unwrap()
            .extend(how.as_object().unwrap().clone());
        let devices = json!({
            "devices": [{"profile": "a100", "count": 2}], "faults": [fault], "state": folder("state"),
        });
        // When
        let (exit, report) = run(smoke(&devices), &[]);
        // Then the node has a fault, whatever the second try says
        let failure = failure(&report);
        assert_eq!(
            (exit, failure.class, failure.step, report.attempts),
            (13, Class::Node, Step::Peers, 2),
            "{failure:?}"
        );
    }
}

fn failure_code(report: &Report) -> Option<i32> {
    failure(report).code
}

#[test]
fn what_a_moment_fixes_is_waited_for() {
    for (call, code) in [
        ("cuInit", 802),
        ("cuInit", 919),
        ("cuDevicePrimaryCtxRetain", 46),
        ("cuDevicePrimaryCtxRetain", 807),
        ("cuMemAlloc_v2", 2),
    ] {
        let fault = json!({"call": call, "code": code, "processes": [1, 2]});
        let devices = json!({"faults": [fault], "state": folder("state")});
        let (exit, report) = run(smoke(&devices), &[]);
        assert_eq!((exit, report.attempts), (0, 3), "{code}: {report:?}");
        let [warning] = &report.warnings[..] else {
            panic!("{code}: {:?}", report.warnings)
        };
        assert_eq!(warning.reason, "PassedOnRetry");
        assert!(
            warning.message.contains(&code.to_string()),
            "{}",
            warning.message
        );
    }
}

#[test]
fn what_lasts_longer_than_the_gate_waits_is_told_with_its_code() {
    let cases = [
        ("cuDevicePrimaryCtxRetain", 46, Class::Transient),
        ("cuInit", 802, Class::Transient),
        ("cuMemAlloc_v2", 2, Class::Node),
    ];
    side_by_side(cases, |(call, code, class)| {
        let devices = faulty(json!({"call": call, "code": code}));
        let started = Instant::now();
        let (_, report) = run(smoke(&devices), &["--wait", "6"]);
        let took = started.elapsed();
        let failure = failure(&report);
        assert_eq!((failure.class, failure.code), (class, Some(code)));
        assert!((2..=7).contains(&report.attempts), "{}", report.attempts);
        // All but a rest that is too short to change anything is used up.
        assert!(took > Duration::from_millis(5750), "{took:?}");
        let is_told = |seconds| {
            let words = format!("for all of the {seconds} s");
            failure.message.contains(&words)
        };
        assert!(
            (1..=took.as_secs()).any(is_told),
            "{took:?}: {}",
            failure.message
        );
    });
}

#[test]
fn a_code_that_nobody_has_listed_is_tried_again_and_blames_nothing() {
    for (processes, exit) in [([1, 1], 0), ([1, 9], 17)] {
        let fault = json!({"call": "cuStreamSynchronize", "code": 4711, "processes": processes});
        let devices = json!({"faults": [fault], "state": folder("state")});
        let (found, report) = run(smoke(&devices), &[]);
        assert_eq!((found, report.attempts), (exit, 2), "{report:?}");
        if exit != 0 {
            let failure = failure(&report);
            assert_eq!(
                (failure.class, failure.confidence),
                (Class::Unknown, Confidence::Low)
            );
        }
    }
}

#[test]
fn slices_shares_and_hidden_devices_are_told_from_lost_ones() {
    let a100 = |count: u32| json!({"devices": [{"profile": "a100", "count": count}]});
    let slices = |count: u32| json!({"devices": [{"profile": "mig-1g", "count": count}]});
    // Devices, requested, device files, CUDA_VISIBLE_DEVICES; exit code, name.
    for (devices, expected, files, visible, exit, name) in [
        (slices(2), "2", &[0][..], None, 10, "SliceHidden"),
        (a100(1), "2", &[0], None, 10, "SliceHidden"),
        (a100(1), "2", &[0, 1], None, 13, "TooFewDevices"),
        (a100(1), "", &[0, 1], None, 13, "TooFewDevices"),
        (a100(2), "2", &[3, 5], None, 0, ""),
        (a100(2), "", &[3, 5], None, 0, ""),
        (slices(2), "", &[0], None, 0, ""),
        (a100(2), "2", &[0, 1], Some("0"), 10, "HiddenDevices"),
        (a100(2), "", &[0, 1], Some("0"), 0, ""),
        (a100(2), "", &[0, 1], Some("7"), 10, "HiddenDevices"),
    ] {
        let dev = device_files(files);
        let mut arguments = vec!["--dev-dir", dev.to_str().unwrap()];
        if !expected.is_empty() {
            arguments.extend(["--expected-devices", expected]);
        }
        let mut command = smoke(&devices);
        if let Some(visible) = visible {
            command.env("CUDA_VISIBLE_DEVICES", visible);
        }
        let (found, report) = run(command, &arguments);
        let named = report
            .failure
            .map_or(String::new(), |failure| failure.code_name);
        assert_eq!(
            (found, named.as_str()),
            (exit, name),
            "{devices}, {expected:?}, {files:?}, {visible:?}"
        );
    }
}

/// The number of the error with which a file cannot be opened.
fn error_of(file: &Path) -> Option<i32> {
    let opened = fs::File::options().read(true).write(true).open(file);
    opened.err()?.raw_os_error()
}

/// What the kernel answers with ENODEV: a number of the misc driver's that no device has. Nothing where a device file cannot
/// be made or opened, as without root.
fn device_that_is_gone() -> Option<PathBuf> {
    const MISC: libc::c_uint = 10;
    let file = folder("gone").join("device");
    let path = CString::new(file.to_str()?).ok()?;
    let mode = libc::S_IFCHR | 0o600;
    // SAFETY: the path ends with a zero.
    let failed = unsafe { libc::mknod(path.as_ptr(), mode, libc::makedev(MISC, 254)) };
    (failed == 0 && error_of(&file) == Some(libc::ENODEV)).then_some(file)
}

/// A file that nobody may write, root neither.
struct Immutable(PathBuf);

impl Immutable {
    /// What the kernel answers with EPERM; nothing where a file cannot be made so, as without root.
    fn new() -> Option<Self> {
        let file = Self(folder("immutable").join("file"));
        fs::write(&file.0, "").ok()?;
        file.change("+i");
        (error_of(&file.0) == Some(libc::EPERM)).then_some(file)
    }

    fn change(&self, how: &str) {
        // What became of it shows when the file is opened.
        let _ = Command::new("chattr").arg(how).arg(&self.0).output();
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.change("-i");
    }
}

#[test]
fn why_a_device_file_cannot_be_opened_is_told() {
    let (_terminal, eio) = locked_terminal();
    let enxio = folder("socket").join("s");
    let _socket = UnixListener::bind(&enxio).unwrap();
    // Nobody may write there, root neither.
    let eacces = PathBuf::from("/sys/devices/system/cpu/online");
    let enodev = device_that_is_gone();
    let immutable = Immutable::new();
    let eperm = immutable.as_ref().map(|file| file.0.clone());
    for (file, exit, name, words) in [
        (Some(eio), 13, "LostDevice", "Input/output error"),
        (Some(enxio), 13, "LostDevice", "No such device or address"),
        (enodev, 13, "LostDevice", "No such device (os error 19)"),
        (eperm, 10, "ExcludedDevice", "Operation not permitted"),
        (Some(eacces), 10, "DeviceFileMode", "Permission denied"),
    ] {
        let Some(file) = file else {
            println!("left out, it takes root: {words}");
            continue;
        };
        // Alone, so that the driver has no device, and beside one that is well.
        for (numbers, call) in [(&[][..], "cuInit"), (&[0][..], "cuDeviceGetCount")] {
            let dev = device_files(numbers);
            let file_of_it = dev.join(format!("nvidia{}", numbers.len()));
            symlink(&file, &file_of_it).unwrap();
            let count = numbers.len() + 1;
            let devices =
                json!({"devices": [{"profile": "a100", "count": count}], "deviceFiles": dev});
            let arguments = ["--dev-dir", dev.to_str().unwrap()];
            let (found, report) = run(smoke(&devices), &arguments);
            let failure = failure(&report);
            assert_eq!(
                (found, failure.code_name.as_str()),
                (exit, name),
                "{call}: {failure:?}"
            );
            assert_eq!(failure.code, numbers.is_empty().then_some(100), "{call}");
            assert!(
                failure.message.contains(words)
                    && failure.message.contains(file_of_it.to_str().unwrap()),
                "{}",
                failure.message
            );
        }
    }
}

/// Makes a file that nobody can open before we let go of it: another process's open waits for our lease to end.
fn leased(path: &Path) -> fs::File {
    use std::os::fd::AsRawFd as _;
    let mut options = fs::File::options();
    let file = options.read(true).write(true).open(path).unwrap();
    // SAFETY: plain system calls. The signal that asks for the lease would end this process.
    let leased = unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK)
    };
    assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
    file
}

#[test]
fn a_device_file_that_is_not_opened_in_time_is_a_lost_devices() {
    // Given a device file that does not open
    let dev = device_files(&[0]);
    let path = dev.join("nvidia0");
    let file = leased(&path);
    // When the driver opens it, while it starts
    let arguments = ["--timeout", "5", "--dev-dir", dev.to_str().unwrap()];
    let (exit, report) = run(smoke(&json!({"deviceFiles": dev})), &arguments);
    // Then it is no hang of the driver's
    let failure = failure(&report);
    assert_eq!(
        (exit, failure.code_name.as_str(), failure.step),
        (13, "LostDevice", Step::Init),
        "{failure:?}"
    );
    let words = format!("{} was not opened within", path.display());
    assert!(failure.message.contains(&words), "{}", failure.message);
    drop(file);
}

#[test]
fn a_device_that_answers_with_an_error_is_named_before_one_that_does_not_answer() {
    // Given a device whose file does not open in time, and a later one that is lost
    let (_terminal, eio) = locked_terminal();
    let dev = device_files(&[0]);
    symlink(eio, dev.join("nvidia1")).unwrap();
    let file = leased(&dev.join("nvidia0"));
    // When the driver starts them
    let arguments = ["--timeout", "5", "--dev-dir", dev.to_str().unwrap()];
    let (exit, report) = run(smoke(&json!({"deviceFiles": dev})), &arguments);
    // Then it is the second
    let failure = failure(&report);
    assert_eq!((exit, failure.code_name.as_str()), (13, "LostDevice"));
    let words = format!("{} cannot be opened", dev.join("nvidia1").display());
    assert!(failure.message.contains(&words), "{}", failure.message);
    drop(file);
}

#[test]
fn who_runs_out_of_memory_is_told_the_limit() {
    let cgroup = folder("cgroup");
    let events = cgroup.join("memory.events");
    fs::write(&events, "oom 0\noom_kill 0\n").unwrap();
    fs::write(cgroup.join("memory.max"), "268435456\n").unwrap();
    let killed = json!({"call": "cuStreamSynchronize", "crash": "oom"});
    let devices = json!({"faults": [killed], "memoryEvents": events});
    let (exit, report) = run(smoke(&devices), &["--cgroup-dir", cgroup.to_str().unwrap()]);
    let failure = failure(&report);
    assert_eq!(
        (exit, failure.code_name.as_str(), report.attempts),
        (10, "OutOfMemoryKill", 1)
    );
    assert!(failure.message.contains("256 MiB"), "{}", failure.message);
}

#[test]
fn a_kill_by_a_node_without_memory_is_not_the_limits() {
    // Given a container with a limit that it does not reach
    let cgroup = folder("cgroup");
    let events = cgroup.join("memory.events");
    fs::write(&events, "oom 0\noom_kill 0\n").unwrap();
    fs::write(cgroup.join("memory.max"), "268435456\n").unwrap();
    // When the kernel kills the test process, because the node has no memory left
    let killed = json!({"call": "cuStreamSynchronize", "crash": "nodeOom"});
    let devices = json!({"faults": [killed], "memoryEvents": events});
    let (exit, report) = run(smoke(&devices), &["--cgroup-dir", cgroup.to_str().unwrap()]);
    // Then nobody has to raise the limit
    let failure = failure(&report);
    assert_eq!((exit, failure.code_name.as_str()), (11, "NodeOutOfMemory"));
    for words in [
        "not at the container's limit",
        "The node is short of memory",
    ] {
        assert!(failure.message.contains(words), "{}", failure.message);
    }
}

#[test]
fn a_kill_that_no_control_group_counts_is_a_crash() {
    let killed = json!({"call": "cuStreamSynchronize", "crash": "oom"});
    let (exit, report) = run(
        smoke(&json!({"faults": [killed]})),
        &["--cgroup-dir", "/nowhere"],
    );
    assert_eq!(
        (exit, self::failure(&report).code_name.as_str()),
        (13, "Crash")
    );
}

#[test]
fn a_library_that_prints_without_an_end_of_line_hides_no_verdict() {
    // The verdict is the very next line.
    let fault = json!({"call": "cuInit", "says": "{\"event\": oops", "code": 34});
    let (exit, report) = run(smoke(&faulty(fault)), &[]);
    assert_eq!((exit, failure_code(&report)), (10, Some(34)), "{report:?}");
}

#[test]
fn a_device_whose_clock_is_broken_is_in_the_report() {
    let (exit, report) = run(smoke(&json!({"brokenClock": true})), &[]);
    assert_eq!((exit, report.devices.len()), (0, 1));
    let is_timed = |step| report.devices[0].steps.iter().any(|ran| ran.step == step);
    assert!(is_timed(Step::Synchronize) && is_timed(Step::CopyToHost));
}

#[test]
fn several_devices_have_several_times_as_long_and_a_hang_tells_its_true_wait() {
    let devices = json!({
        "devices": [{"profile": "a100", "count": 3}],
        "faults": [{"call": "cuInit", "hang": true}],
    });
    let arguments = ["--timeout", "2", "--expected-devices", "3"];
    let started = Instant::now();
    let (exit, report) = run(smoke(&devices), &arguments);
    let failure = failure(&report);
    assert_eq!((exit, failure.code_name.as_str()), (13, "Hang"));
    let most = started.elapsed().as_secs() + 1;
    assert!((6..=most).contains(&waited(failure)), "{failure:?}");
}

#[test]
fn a_cold_start_of_eight_devices_may_take_longer_than_that_of_one() {
    let arguments = ["--timeout", "3", "--shared"];
    // Given devices that together take longer to start than one of them may
    let devices = json!({"devices": [{"profile": "a100", "count": 8, "startupMs": 600}]});
    // When
    let (exit, report) = run(
        smoke(&devices),
        &[&arguments[..], &["--expected-devices", "8"]].concat(),
    );
    // Then they have the time of eight
    assert_eq!((exit, report.attempts), (0, 1), "{:?}", report.failure);
    assert!(report.timings.init_ms > 4_800.0, "{:?}", report.timings);
    // And one device that takes as long has no such time
    let device = json!({"devices": [{"profile": "a100", "startupMs": 4_800}]});
    let (exit, report) = run(smoke(&device), &arguments);
    let failure = failure(&report);
    assert_eq!((exit, failure.step), (13, Step::Init), "{failure:?}");
}

#[test]
fn a_hang_under_mps_may_be_anothers() {
    let hang = faulty(json!({"call": "cuStreamSynchronize", "hang": true}));
    side_by_side([(true, 11), (false, 12)], |(mps, exit)| {
        let mut command = smoke(&hang);
        if mps {
            command.env("CUDA_MPS_PIPE_DIRECTORY", "/mps");
        }
        let (found, report) = run(command, &["--timeout", "5"]);
        let failure = failure(&report);
        assert_eq!((found, failure.code_name.as_str()), (exit, "Hang"));
        assert_eq!(failure.shared, mps);
    });
}

/// A root folder with the driver at these places.
fn root(places: &[&str]) -> PathBuf {
    let root = folder("root");
    for place in places {
        let file = root.join(place);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::copy(driver(), file).unwrap();
    }
    root
}

fn with_root(root: &Path, path: Option<&Path>) -> (i32, Report) {
    let mut command = without_driver();
    if let Some(path) = path {
        command.env("LD_LIBRARY_PATH", path);
    }
    run(command, &["--library-root", root.to_str().unwrap()])
}

#[test]
fn the_driver_is_found_where_drivers_are() {
    for place in ["usr/local/nvidia/lib64", "usr/lib64", "usr/lib/wsl/lib"] {
        let file = format!("{place}/libcuda.so.1");
        let root = root(&[&file]);
        let (exit, report) = with_root(&root, None);
        assert_eq!(exit, 0, "{place}: {:?}", report.failure);
        let library = report.driver.unwrap().library.unwrap();
        assert_eq!(Path::new(&library), root.join(file));
    }
}

#[test]
fn a_toolkits_stub_comes_last_and_is_named() {
    // Given the stub on the loader's path, as a toolkit's image has it
    let root = root(&["usr/lib64/libcuda.so.1", "stubs/libcuda.so"]);
    let stubs = root.join("stubs");
    // When
    let (exit, report) = with_root(&root, Some(&stubs));
    // Then the driver is used
    assert_eq!(exit, 0, "{:?}", report.failure);
    let driver = report.driver.unwrap();
    assert!(driver.library.unwrap().ends_with("usr/lib64/libcuda.so.1"));
    assert_eq!(
        driver.other_libraries,
        [stubs.join("libcuda.so").display().to_string()]
    );
    // And where there is no other, what the loader finds
    fs::remove_dir_all(root.join("usr")).unwrap();
    let (exit, _) = with_root(&root, Some(&stubs));
    assert_eq!(exit, 0);
}

#[test]
fn a_library_that_is_there_and_not_the_driver_is_named() {
    let compat = "usr/local/cuda/compat/libcuda.so.1";
    let root = root(&[compat]);
    let (exit, report) = with_root(&root, None);
    let failure = failure(&report);
    assert_eq!((exit, failure.code_name.as_str()), (10, "NoDriver"));
    assert!(
        failure
            .message
            .contains(root.join(compat).to_str().unwrap()),
        "{}",
        failure.message
    );
}
