//! `config.sh` and `config.sh remove`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    cli::{Configure, Remove},
    code,
    server::{Registration, Server},
    settings, terminal,
};

/// Registers the runner.
pub(crate) fn add(root: &Path, options: &Configure) -> Result<u8> {
    terminal::open_log(root, "Runner")?;
    if settings::present(root) {
        bail!(
            "Cannot configure the runner because it is already configured. To reconfigure the \
             runner, run 'config.cmd remove' or './config.sh remove' first."
        );
    }
    if !options.unattended {
        terminal::line("There is nobody to ask: --unattended is assumed.");
    }
    let url = required(options.url.as_deref(), "url")?.trim_end_matches('/');
    let token = required(options.token.as_deref(), "token")?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => hostname()?,
    };
    let labels = options.labels.as_deref().unwrap_or_default().split(',');
    let server = Server::new(&format!("{}/_agent", site(url)?), "")?;
    let registration = Registration {
        url,
        token,
        name: &name,
        labels: labels.map(str::trim).filter(|l| !l.is_empty()).collect(),
        group: options.runnergroup.as_deref(),
        work: &options.work,
        version: settings::version(),
        ephemeral: options.ephemeral,
        replace: options.replace,
        no_default_labels: options.no_default_labels,
    };
    terminal::trace(
        "INFO",
        "ConfigurationManager",
        &format!("DisableUpdate: {}", options.disableupdate),
    );
    match server.register(&registration)? {
        Ok(registered) => {
            terminal::line("√ Connected to GitHub");
            terminal::line(if registered.replaced {
                "√ Successfully replaced the runner"
            } else {
                "√ Runner successfully added"
            });
            settings::save(root, &registered.files)?;
            terminal::line("√ Settings Saved.");
            Ok(code::SUCCESS)
        }
        Err(refusal) => {
            if refusal.kind == "runnerExists" {
                terminal::line("A runner exists with the same name");
            }
            terminal::error(&refusal.message);
            Ok(code::TERMINATED)
        }
    }
}

/// Takes the registration back.
pub(crate) fn remove(root: &Path, options: &Remove) -> Result<u8> {
    terminal::open_log(root, "Runner")?;
    if !options.local && settings::present(root) {
        let token = required(options.token.as_deref(), "token")?;
        let (settings, _) = settings::load(root)?;
        let server = Server::new(&settings.server_url, "")?;
        let id = settings
            .agent_id
            .parse()
            .context("the number in .runner is not understood")?;
        match server.remove(&settings.git_hub_url, token, id)? {
            Ok(()) => terminal::line("√ Runner removed successfully"),
            // Somebody removed it already, which is what is wanted.
            Err(refusal) if refusal.kind == "runnerNotFound" => {
                terminal::line("Runner does not exist on the server. Skipping");
            }
            Err(refusal) => {
                terminal::error(&refusal.message);
                return Ok(code::TERMINATED);
            }
        }
    }
    settings::delete(root);
    terminal::line("√ Removed .credentials");
    terminal::line("√ Removed .runner");
    Ok(code::SUCCESS)
}

fn required<'a>(value: Option<&'a str>, name: &str) -> Result<&'a str> {
    value
        .filter(|value| !value.trim().is_empty())
        .ok_or_else(|| {
            anyhow!(
                "Invalid configuration provided for {name}. Terminating unattended configuration."
            )
        })
}

/// `https://host:port` of a URL.
fn site(url: &str) -> Result<&str> {
    let start = url
        .find("://")
        .map(|position| position + 3)
        .ok_or_else(|| anyhow!("{url} is not a URL"))?;
    let end = url[start..]
        .find('/')
        .map_or(url.len(), |position| start + position);
    Ok(&url[..end])
}

fn hostname() -> Result<String> {
    let name =
        fs::read_to_string("/proc/sys/kernel/hostname").context("asking for the host's name")?;
    Ok(name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_site_of_a_url() {
        assert_eq!(site("https://h:1/o/r").unwrap(), "https://h:1");
        assert_eq!(site("https://h").unwrap(), "https://h");
        assert!(site("h/o").is_err());
    }
}
