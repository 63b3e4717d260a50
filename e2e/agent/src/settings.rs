//! The files of a configured agent.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;

/// The three files; who has them is the runner.
const FILES: [&str; 3] = [".runner", ".credentials", ".credentials_rsaparams"];

/// The version that it pretends to be: an image sets another one to be refused.
pub(crate) fn version() -> String {
    env::var("SIMULATED_AGENT_VERSION").unwrap_or_else(|_| "2.338.0".to_owned())
}

/// What `.runner` says, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Settings {
    pub(crate) agent_id: String,
    pub(crate) agent_name: String,
    pub(crate) server_url: String,
    pub(crate) git_hub_url: String,
    pub(crate) work_folder: String,
    pub(crate) ephemeral: String,
}

impl Settings {
    /// Whether it ends after one job.
    pub(crate) fn ephemeral(&self) -> bool {
        self.ephemeral.eq_ignore_ascii_case("true")
    }
}

/// Whether the agent is configured.
pub(crate) fn present(root: &Path) -> bool {
    root.join(".runner").is_file()
}

/// Reads the settings and the secret.
pub(crate) fn load(root: &Path) -> Result<(Settings, String)> {
    let read = |name: &str| -> Result<Vec<u8>> {
        let path = root.join(name);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let settings =
        serde_json::from_slice(&read(".runner")?).context(".runner is not understood")?;
    let key: Value = serde_json::from_slice(&read(".credentials_rsaparams")?)
        .context(".credentials_rsaparams is not understood")?;
    let secret = key
        .get("d")
        .and_then(Value::as_str)
        .ok_or_else(|| anyhow!(".credentials_rsaparams holds no key"))?
        .to_owned();
    Ok((settings, secret))
}

/// Writes the files that registering gave.
pub(crate) fn save(root: &Path, files: &BTreeMap<String, Value>) -> Result<()> {
    for (name, content) in files {
        write(root, name, content.to_string().as_bytes())?;
    }
    Ok(())
}

/// Writes the files that a JIT configuration holds; gives their names and sizes.
pub(crate) fn save_jit(root: &Path, encoded: &str) -> Result<Vec<(PathBuf, usize)>> {
    // Nothing of the content may come into an error: it is a credential.
    let text = STANDARD
        .decode(encoded.trim())
        .map_err(|_| anyhow!("the JIT configuration is not base64"))?;
    let files: BTreeMap<String, String> = serde_json::from_slice(&text)
        .map_err(|_| anyhow!("the JIT configuration is not a JSON object of files"))?;
    let mut saved = Vec::new();
    for (name, content) in files {
        let content = STANDARD
            .decode(content)
            .map_err(|_| anyhow!("{name} in the JIT configuration is not base64"))?;
        saved.push((write(root, &name, &content)?, content.len()));
    }
    Ok(saved)
}

fn write(root: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let path = root.join(name);
    if name.contains('/') || name == ".." {
        return Err(anyhow!("{name} is not the name of a file of the agent"));
    }
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Forgets the registration.
pub(crate) fn delete(root: &Path) {
    for name in FILES {
        // A file that is not there is as good as deleted.
        let _ = fs::remove_file(root.join(name));
    }
}
