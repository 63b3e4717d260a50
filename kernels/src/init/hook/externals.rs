//! What actions need of the agent's in the job's container: its Node.js, of which the agent wants `/__e/NODE/bin/node`.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Copies each `node*/bin/node`. An agent that brings none has no actions that need it.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let node = from.join(&name).join("bin/node");
        if !name.to_string_lossy().starts_with("node") || !node.is_file() {
            continue;
        }
        let folder = to.join(&name).join("bin");
        fs::create_dir_all(&folder)?;
        let copy = folder.join("node");
        fs::copy(&node, &copy)?;
        // For whatever user the job's image has.
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
    }
    Ok(())
}
