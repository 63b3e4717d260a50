//! The gate's PTX, assembled by NVIDIA's own ptxas for every GPU that each version knows: from Volta to Blackwell.
//!
//! The assemblers come from PyPI, once, and are kept in `${XDG_CACHE_HOME:-~/.cache}/cuda-runner-e2e`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod common;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Package, version, and the targets that it assembles for. The first supports no newer PTX than ours.
const ASSEMBLERS: &[(&str, &str, &[u32])] = &[
    (
        "nvidia-cuda-nvcc-cu12",
        "12.0.140",
        &[70, 72, 75, 80, 86, 87, 89, 90],
    ),
    (
        "nvidia-cuda-nvcc-cu12",
        "12.9.86",
        &[70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121],
    ),
    (
        "nvidia-cuda-nvcc",
        "13.5.37",
        &[75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121],
    ),
];

#[test]
fn every_assembler_takes_it_for_every_target() {
    for (package, version, targets) in ASSEMBLERS {
        let ptxas = ptxas(package, version);
        for target in *targets {
            for file in all_ptx() {
                let (good, said) = assemble(&ptxas, &file, *target);
                let file = file.display();
                assert!(good, "ptxas {version}, {file} for sm_{target}: {said}");
            }
        }
    }
}

#[test]
fn row_20_too_old_a_gpu_and_a_wrong_kernel_are_refused() {
    let (package, version, _) = ASSEMBLERS[1];
    let ptxas = ptxas(package, version);
    let (good, said) = assemble(&ptxas, &ptx(), 61);
    assert!(
        !good && said.contains("higher than"),
        "the kernel is for sm_70, and sm_61 took it: {said}"
    );
    let wrong = fs::read_to_string(ptx())
        .unwrap()
        .replacen("add.", "frobnicate.", 1);
    let file = common::folder("wrong").join("wrong.ptx");
    fs::write(&file, wrong).unwrap();
    assert!(!assemble(&ptxas, &file, 80).0, "ptxas takes anything");
}

fn ptx() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx/vector_add.ptx")
}

fn all_ptx() -> Vec<PathBuf> {
    let files: Vec<_> = fs::read_dir(ptx().parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 4, "{files:?}");
    files
}

fn assemble(ptxas: &Path, file: &Path, target: u32) -> (bool, String) {
    let output = Command::new(ptxas)
        .arg(format!("--gpu-name=sm_{target}"))
        .arg("--output-file=/dev/null")
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

/// The assembler of that version, fetched where it is not there yet.
fn ptxas(package: &str, version: &str) -> PathBuf {
    let home = || {
        PathBuf::from(env::var_os("HOME").expect("neither XDG_CACHE_HOME nor HOME is set"))
            .join(".cache")
    };
    let cache = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map_or_else(home, PathBuf::from);
    let file = cache.join("cuda-runner-e2e/ptxas").join(version);
    if !file.exists() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let partial = file.with_extension(format!("partial-{}", std::process::id()));
        fs::copy(fetch(package, version), &partial).unwrap();
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&partial, &file).unwrap();
    }
    file
}

fn fetch(package: &str, version: &str) -> PathBuf {
    let folder = common::folder("wheel");
    python(
        &folder,
        &[
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            &format!("{package}=={version}"),
        ],
    );
    let wheel = fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    python(&folder, &["zipfile", "-e", &wheel.to_string_lossy(), "."]);
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with("bin/ptxas") {
                return path;
            }
        }
    }
    panic!("there is no ptxas in {package} {version}");
}

fn python(folder: &Path, arguments: &[&str]) {
    let output = Command::new("python3")
        .arg("-m")
        .args(arguments)
        .current_dir(folder)
        .output();
    let output = output.expect("Python 3 with pip is needed, to fetch ptxas from PyPI");
    assert!(
        output.status.success(),
        "`python3 -m {}` failed; ptxas is fetched from PyPI, once, and that needs pip and the network: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
