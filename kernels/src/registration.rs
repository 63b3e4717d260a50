//! What the gate leaves for the runner.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gate_report::wire::Registration;

/// The file with the JIT configuration.
const JIT_CONFIG: &str = "jitconfig";
/// The file with the registration token.
const TOKEN: &str = "token";

/// For whatever user the job's image has: the folder is in no other container, and the registration goes as soon as it
/// is read. In a folder with the sticky bit another user can empty the file, not remove it.
const OPEN: u32 = 0o666;

/// The agent's hooks, and the look at the GPU that they share with the readiness probe, by name.
const SCRIPTS: [(&str, &str); 4] = [
    ("gpu.sh", include_str!("../hooks/gpu.sh")),
    ("team-hook.sh", include_str!("../hooks/team-hook.sh")),
    ("job-started.sh", include_str!("../hooks/job-started.sh")),
    (
        "job-completed.sh",
        include_str!("../hooks/job-completed.sh"),
    ),
];

/// Writes the registration and the hooks. The registration comes last: where it is, the rest is too.
pub(crate) fn store(dir: &Path, registration: &Registration) -> io::Result<()> {
    for (name, script) in SCRIPTS {
        write(&dir.join(name), script.as_bytes(), 0o755)?;
    }
    match registration {
        Registration::JitConfig { encoded_jit_config } => {
            write(&dir.join(JIT_CONFIG), encoded_jit_config.as_bytes(), OPEN)
        }
        Registration::RegistrationToken { token } => {
            write(&dir.join(TOKEN), token.as_bytes(), OPEN)
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
