//! The script that looks at the runner's image, under the shells that images have, against images of a few files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use gate_report::contract::script;
use gate_report::preflight::Facts;
use gate_report::preflight::SCRIPT;

/// Shells of images: Debian's, Alpine's and others. The first is on every machine, the others are tried where they are.
const SHELLS: [&[&str]; 3] = [&["sh"], &["busybox", "sh"], &["bash", "--posix"]];

/// An image, as far as the script can see.
struct Image {
    root: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Image {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        // What an earlier process of this number left is still there.
        let root = loop {
            let number = NUMBER.fetch_add(1, Ordering::SeqCst);
            let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("preflight-{}-{number}", std::process::id()));
            match fs::create_dir(&root) {
                Ok(()) => break root,
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
            }
        };
        for folder in ["bin", "run", "home"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        Self {
            root,
            environment: vec![],
        }
    }

    fn path(&self, path: &str) -> String {
        self.root.join(path).to_string_lossy().into_owned()
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Another process writes it: where this one does, a child that another thread has just forked may still have it open,
    /// and Linux runs no file that is open for writing.
    fn program(self, path: &str, script: &str) -> Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = Command::new("sh")
            .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = writer.stdin.take().unwrap();
        write!(input, "#!/bin/sh\n{script}\n").unwrap();
        drop(input);
        assert!(writer.wait().unwrap().success());
        self
    }

    /// What the script finds, the same under every shell. Commands of this machine are out of its sight.
    fn facts(&self) -> Facts {
        let script = SCRIPT.replace("/usr/local/cuda", &self.path("usr/local/cuda"));
        let mut all: Vec<Facts> = vec![];
        for shell in SHELLS {
            let Some(program) = find(shell[0]) else {
                assert_ne!(shell[0], "sh");
                continue;
            };
            let output = Command::new(program)
                .args(&shell[1..])
                .args(["-c", &script, "preflight"])
                .env_clear()
                .env("PATH", self.path("bin"))
                .env("HOME", self.path("home"))
                .env(script::DIR, self.path("run"))
                .env(script::WORK, self.path("home/runner/_work"))
                .envs(self.environment.iter().map(|(name, value)| (name, value)))
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && errors.is_empty(),
                "{shell:?}: {errors}"
            );
            let written = fs::read_to_string(self.root.join("run/preflight")).unwrap();
            assert_eq!(
                written,
                String::from_utf8_lossy(&output.stdout),
                "{shell:?}"
            );
            let facts = Facts::read(&written);
            assert!(
                facts.complete,
                "{shell:?} did not come to the end: {written}"
            );
            if let Some(first) = all.first() {
                assert_eq!(&facts, first, "{shell:?} and {:?} differ", SHELLS[0]);
            }
            all.push(facts);
        }
        all.remove(0)
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn toolkit(image: Image) -> Option<String> {
    let facts = image.with(script::TOOLKIT, "1").facts();
    facts.cuda_toolkit.map(|(version, _)| version)
}

const NVCC: &str = r#"echo "nvcc: NVIDIA (R) Cuda compiler driver"
echo "Cuda compilation tools, release 12.4, V12.4.131"
echo "Build cuda_12.4.r12.4/compiler.34097967_0""#;

/// As NVIDIA writes it, shortened.
const VERSION_JSON: &str = r#"{
   "cuda_cccl_early" : { "name" : "x", "version" : "1.0" },
   "cuda" : {
      "name" : "CUDA SDK",
      "version" : "13.1.0"
   },
   "cuda_cudart" : {
      "name" : "CUDA Runtime (cudart)",
      "version" : "13.1.48"
   }
}"#;

#[test]
fn an_image_with_nothing_in_it_is_an_answer_too() {
    let facts = Image::new()
        .with(script::COMMANDS, "git cc")
        .with(script::TOOLKIT, "1")
        .with(script::TOOLCHAIN, "stable")
        .facts();
    let nothing = Facts {
        complete: true,
        ..Facts::default()
    };
    assert_eq!(facts, nothing);
}

#[test]
fn commands_on_the_path_are_found() {
    let facts = Image::new()
        .program("bin/git", "exit 1")
        .program("bin/c++", "exit 1")
        .program("sbin/tar", "exit 1")
        .with(script::COMMANDS, "git c++ tar cc")
        .facts();
    assert_eq!(facts.commands, ["git", "c++"]);
}

#[test]
fn the_toolkits_version_is_read_wherever_it_stands() {
    let json = |path: &str, text: &str| Image::new().file(path, text);
    let usual = "usr/local/cuda/version.json";
    let compiler = |path: &str| Image::new().program(path, NVCC);
    assert_eq!(toolkit(compiler("bin/nvcc")).unwrap(), "12.4");
    assert_eq!(
        toolkit(compiler("usr/local/cuda/bin/nvcc")).unwrap(),
        "12.4"
    );
    assert_eq!(toolkit(json(usual, VERSION_JSON)).unwrap(), "13.1.0");
    let one_line = VERSION_JSON.replace('\n', " ");
    assert_eq!(toolkit(json(usual, &one_line)).unwrap(), "13.1.0");
    let text = json("usr/local/cuda/version.txt", "CUDA Version 10.2.89\n");
    assert_eq!(toolkit(text).unwrap(), "10.2.89");
    let elsewhere = json("opt/cuda/version.json", VERSION_JSON);
    let home = elsewhere.path("opt/cuda");
    assert_eq!(
        toolkit(elsewhere.with("CUDA_HOME", home)).unwrap(),
        "13.1.0"
    );
}

#[test]
fn a_compiler_that_does_not_run_leaves_it_to_the_files() {
    let image = Image::new()
        .program("bin/nvcc", "echo 'libcudart: no such file' >&2; exit 1")
        .file("usr/local/cuda/version.json", VERSION_JSON);
    assert_eq!(toolkit(image).unwrap(), "13.1.0");
}

#[test]
fn files_that_hold_no_version_are_no_toolkit() {
    let texts = [
        "",
        "{",
        r#"{"cuda":{}}"#,
        r#"{"version":"1.0"}"#,
        "\"cuda\"\t\"version\"\n",
        "CUDA",
    ];
    for text in texts {
        for name in ["version.json", "version.txt"] {
            let image = Image::new().file(&format!("usr/local/cuda/{name}"), text);
            assert_eq!(toolkit(image), None, "{name}: {text}");
        }
    }
}

#[test]
fn a_rust_toolchain_is_known_by_its_folder_or_by_rustup() {
    let asked = |image: Image| {
        let image = image.with(script::TOOLCHAIN, "nightly-2026-04-03");
        image.facts().rust_toolchain
    };
    let full = "nightly-2026-04-03-x86_64-unknown-linux-gnu";
    let installed = |path: String| Image::new().file(&path, "");
    assert!(asked(installed(format!(
        "home/.rustup/toolchains/{full}/bin/cargo"
    ))));
    assert!(!asked(installed(
        "home/.rustup/toolchains/nightly-2026-04-04/x".into()
    )));
    let moved = installed(format!("opt/rustup/toolchains/{full}/bin/cargo"));
    let folder = moved.path("opt/rustup");
    assert!(asked(moved.with("RUSTUP_HOME", folder)));
    let list = |name: &str| {
        let script = format!("echo stable-x\necho '{name} (default)'");
        Image::new().program("bin/rustup", &script)
    };
    assert!(asked(list(full)));
    assert!(!asked(list("nightly-x86_64-unknown-linux-gnu")));
}

#[test]
fn the_disk_is_that_of_the_work_folder_or_of_its_nearest_parent() {
    let df = r#"[ "$1 $2" = "-P -k" ] || exit 1
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "overlay 100 40 60 40% $3""#;
    let image = Image::new().program("bin/df", df);
    let home = image.path("home");
    assert_eq!(image.facts().disk, Some((60, home)));
    let image = Image::new()
        .program("bin/df", df)
        .file("home/runner/_work/x", "");
    let work = image.path("home/runner/_work");
    assert_eq!(image.facts().disk, Some((60, work)));
}

#[test]
fn what_the_spec_asks_for_is_data_and_never_a_command() {
    let image = Image::new();
    let trap = image.path("trap");
    let evil = format!("$(>{trap}) `>{trap}`;>{trap} * ../*");
    let facts = image
        .with(script::COMMANDS, evil.clone())
        .with(script::TOOLCHAIN, evil)
        .facts();
    assert!(facts.commands.is_empty() && !Path::new(&trap).exists());
}
