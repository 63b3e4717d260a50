//! What the gate leaves for the runner.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gate_report::contract::file;
use gate_report::wire::Registration;

/// For whatever user the job's image has: the folder is in no other container, and the registration goes as soon as it
/// is read. In a folder with the sticky bit another user can empty the file, not remove it.
const OPEN: u32 = 0o666;

/// The agent's hooks, and the look at the GPU that they share with the readiness probe, by name.
const SCRIPTS: [(&str, &str); 4] = [
    (file::GPU, include_str!("../hooks/gpu.sh")),
    (file::TEAM_HOOK, include_str!("../hooks/team-hook.sh")),
    (file::JOB_STARTED, include_str!("../hooks/job-started.sh")),
    (
        file::JOB_COMPLETED,
        include_str!("../hooks/job-completed.sh"),
    ),
];

/// Writes the registration and the hooks. The registration comes last: where it is, the rest is too.
pub(crate) fn store(dir: &Path, registration: &Registration) -> io::Result<()> {
    for (name, script) in SCRIPTS {
        write(&dir.join(name), script.as_bytes(), 0o755)?;
    }
    match registration {
        Registration::JitConfig { encoded_jit_config } => write(
            &dir.join(file::JIT_CONFIG),
            encoded_jit_config.as_bytes(),
            OPEN,
        ),
        Registration::RegistrationToken { token } => {
            write(&dir.join(file::TOKEN), token.as_bytes(), OPEN)
        }
    }
}

/// Writes a whole file or none, never readable by more than it should be. A file from an earlier try is replaced.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let partial = path.with_extension("partial");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)?;
    file.write_all(bytes)?;
    // The mode of creation is cut by the umask.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use gate_report::contract::{REGISTRATION_DIR, TERMINATION_LOG, file, mark, script};

    use super::SCRIPTS;

    /// The scripts cannot read the constants.
    #[test]
    fn the_hooks_write_the_shared_names_as_everyone_does() {
        let folder = format!("dir=${{{}:-{REGISTRATION_DIR}}}\n", script::DIR);
        let log = format!(">{TERMINATION_LOG}");
        let mark = |mark: &str| format!(r#"{{"mark":"{mark}","#);
        let path = |name: &str| format!(r#""$dir/{name}""#);
        let given = |name: &str| format!(r#" "${name}""#);
        let hook = |word: &str, team: &str| {
            let all = [file::BUSY, file::GPU, file::TEAM_HOOK].map(path);
            [all.as_slice(), &[mark(word), given(team)]].concat()
        };
        let cases = [
            (file::GPU, vec![mark(mark::GPU_LOST)]),
            (file::JOB_STARTED, hook(mark::STARTED, script::TEAM_STARTED)),
            (
                file::JOB_COMPLETED,
                hook(mark::COMPLETED, script::TEAM_COMPLETED),
            ),
        ];
        for (name, texts) in cases {
            let (_, script) = SCRIPTS.iter().find(|(n, _)| *n == name).unwrap();
            for text in [&folder, &log].into_iter().chain(&texts) {
                assert!(script.contains(text), "{name} has no {text}");
            }
        }
    }
}
