//! `volumes:` of a container. Nothing can be mounted into a container that runs, so a volume is a folder that is there
//! already, by another name, or a new one.

use super::input::Mount;
use super::wishes::{Pool, Role};
use crate::job::request::Link;

/// What becomes of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is there.
    There,
    /// A new folder.
    New(String),
    /// Another name for a folder.
    Link(Link),
}

/// Where a volume is, or why it cannot be. `system` are the agent's own mounts: its paths, and the container's.
pub(super) fn place(
    mount: &Mount,
    system: &[Mount],
    pool: &Pool,
    role: Role,
) -> Result<Place, String> {
    let (source, target) = (
        mount.source_volume_path.as_str(),
        mount.target_volume_path.trim_end_matches('/'),
    );
    if !is_whole(target) {
        return Err(format!(
            "volumes: {target}: a volume needs the whole path of a folder in the container."
        ));
    }
    if !source.starts_with('/') {
        let is_name = source
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !is_name || source.starts_with('.') {
            return Err(format!(
                "volumes: {source}: name a volume, or write the whole path of a folder."
            ));
        }
        return Ok(match role {
            Role::Job => Place::New(target.into()),
            Role::Service => Place::There,
        });
    }
    if role == Role::Service {
        return Err(format!(
            "volumes: {source}: a service has folders of its own only. Copy files into it by its network, or take an image that has them."
        ));
    }
    let source = source.trim_end_matches('/');
    let inside = of_the_agent(source, system).or_else(|| {
        let is_the_pools = pool
            .volumes
            .iter()
            .any(|volume| below(source, volume).is_some());
        is_the_pools.then(|| source.to_owned())
    });
    let Some(inside) = inside.filter(|_| is_whole(source)) else {
        let why = if is_docker(source) {
            "there is no Docker here."
        } else {
            "folders of the node are not for jobs. The pool's template can mount a volume into the container runner; its path is for volumes: then."
        };
        return Err(format!("volumes: {source}: {why}"));
    };
    Ok(if inside == target {
        Place::There
    } else {
        Place::Link(Link {
            path: target.into(),
            target: inside,
        })
    })
}

/// A path of the agent's, as the job's container has it.
fn of_the_agent(path: &str, system: &[Mount]) -> Option<String> {
    system
        .iter()
        .filter(|mount| !is_docker(&mount.source_volume_path))
        .filter_map(|mount| {
            let rest = below(path, &mount.source_volume_path)?;
            Some((
                mount.source_volume_path.len(),
                format!("{}{rest}", mount.target_volume_path),
            ))
        })
        .max()
        .map(|(_, path)| path)
}

/// The agent always names it, and the pod never has it.
fn is_docker(path: &str) -> bool {
    path.ends_with("/docker.sock")
}

/// What is left of a path below a folder.
fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder)
        .filter(|rest| !folder.is_empty() && (rest.is_empty() || rest.starts_with('/')))
}

/// Whether it is the path of a folder, and says so itself.
fn is_whole(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| {
        !rest.is_empty()
            && rest.split('/').all(|part| !["", ".", ".."].contains(&part))
            && !path.contains(|c: char| c.is_control())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, target: &str) -> Mount {
        Mount {
            source_volume_path: source.into(),
            target_volume_path: target.into(),
            read_only: false,
        }
    }

    #[test]
    fn a_volume_is_a_folder_that_is_there_or_a_new_one() {
        let system = [
            mount("/var/run/docker.sock", "/var/run/docker.sock"),
            mount("/home/runner/_work", "/__w"),
            mount("/home/runner/_work/_temp/_github_home", "/github/home"),
        ];
        let pool = Pool {
            volumes: vec!["/data".into(), "/models/".into()],
            ..Pool::default()
        };
        let link = |path: &str, target: &str| {
            Ok(Place::Link(Link {
                path: path.into(),
                target: target.into(),
            }))
        };
        let new = |path: &str| Ok(Place::New(path.into()));
        for (source, target, expected) in [
            ("", "/cache", new("/cache")),
            ("cache", "/cache/", new("/cache")),
            ("/data", "/data", Ok(Place::There)),
            ("/data/", "/data", Ok(Place::There)),
            ("/data/set", "/set", link("/set", "/data/set")),
            ("/models/a", "/m", link("/m", "/models/a")),
            ("/home/runner/_work/r/r", "/src", link("/src", "/__w/r/r")),
            ("/home/runner/_work", "/__w", Ok(Place::There)),
            (
                "/home/runner/_work/_temp/_github_home/x",
                "/x",
                link("/x", "/github/home/x"),
            ),
        ] {
            let placed = place(&mount(source, target), &system, &pool, Role::Job);
            assert_eq!(placed, expected, "{source}:{target}");
        }
        for (source, target) in [
            ("/", "/host"),
            ("/etc", "/x"),
            ("/database", "/x"),
            ("/data/../etc", "/x"),
            ("/home/runner/_work2", "/x"),
            ("/var/run/docker.sock", "/var/run/docker.sock"),
            ("./relative", "/x"),
            ("..", "/x"),
            ("cache", "x"),
            ("cache", "/"),
            ("cache", "/a/../b"),
            ("cache", ""),
        ] {
            let placed = place(&mount(source, target), &system, &pool, Role::Job);
            assert!(placed.is_err(), "{source}:{target}: {placed:?}");
        }
        // A service has its own folders and no other
        for (source, good) in [("", true), ("db", true), ("/data", false)] {
            let placed = place(&mount(source, "/x"), &system, &pool, Role::Service);
            assert_eq!(placed.is_ok(), good, "{source}: {placed:?}");
        }
    }
}
