//! The job's container as the job wants it: what of it can be changed from the inside, before the first step.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeWriter, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gate_report::contract::script;
use rustix::process::{Resource, Rlimit};

use super::request::{Begin, Begun, Host, Link, Run, Ulimit};

/// Where programs are looked for in an image that does not say it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest file of an image that is read.
const LIMIT: u64 = 1024 * 1024;

/// What all steps have.
pub(super) struct Container {
    env: BTreeMap<String, String>,
    workdir: Option<String>,
    user: Option<User>,
    limits: Vec<(Resource, Rlimit)>,
}

/// Who steps run as.
#[derive(Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl Container {
    /// Makes it so, or says what cannot be.
    pub(super) fn begin(begin: Begin) -> Result<(Self, Begun), String> {
        let root = Path::new("/");
        let user = begin.user.as_deref().map(|user| wanted_user(root, user));
        let limits = begin.ulimits.iter().map(limit).collect::<Result<_, _>>()?;
        for folder in &begin.folders {
            fs::create_dir_all(folder)
                .map_err(|error| format!("The folder {folder} could not be made in the job's container: {error}. Its image's user must be root for that."))?;
        }
        begin.links.iter().try_for_each(link)?;
        let container = Self {
            env: begin.env,
            workdir: begin.workdir,
            user: user.transpose()?.flatten(),
            limits,
        };
        let answer = Begun {
            is_alpine: is_alpine(root),
            notes: name_hosts(&begin.hosts).into_iter().collect(),
        };
        Ok((container, answer))
    }

    /// A step in it.
    pub(super) fn command(&self, run: &Run) -> Result<Command, String> {
        let [program, arguments @ ..] = &run.argv[..] else {
            return Err("The step has no program.".into());
        };
        let mut env: BTreeMap<OsString, OsString> = env::vars_os().collect();
        env.extend(
            self.env
                .iter()
                .chain(&run.env)
                .map(|(name, value)| (name.into(), value.into())),
        );
        let path = env.entry("PATH".into()).or_insert_with(|| PATH.into());
        if !run.path.is_empty() {
            let mut whole = OsString::from(run.path.join(":"));
            whole.push(":");
            whole.push(&*path);
            *path = whole;
        }
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(env);
        let named = run.cwd.as_deref().filter(|cwd| !cwd.is_empty());
        if let Some(cwd) = named.or(self.workdir.as_deref()) {
            if !Path::new(cwd).is_dir() {
                return Err(format!(
                    "The working directory {cwd} is not in the job's container."
                ));
            }
            command.current_dir(cwd);
        }
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        let limits = self.limits.clone();
        if !limits.is_empty() {
            // SAFETY: between fork and exec it makes system calls only, and takes no memory.
            unsafe {
                command.pre_exec(move || {
                    for (resource, limit) in &limits {
                        rustix::process::setrlimit(*resource, *limit)?;
                    }
                    Ok(())
                });
            }
        }
        Ok(command)
    }

    /// Lets a step's user open its own output by name (`>/dev/stderr`).
    pub(super) fn give(&self, output: &PipeWriter) -> io::Result<()> {
        self.user.as_ref().map_or(Ok(()), |User { uid, gid }| {
            std::os::unix::fs::fchown(output, Some(*uid), Some(*gid))
        })
    }
}

/// The GPU's file at the container's start. A `systemctl daemon-reload` on the node can take it from a running container.
pub(super) struct Gpu(Option<PathBuf>);

impl Gpu {
    /// Without the file here and now, nothing is looked at later.
    pub(super) fn look() -> Self {
        let file = env::var_os(script::GPU_FILE).unwrap_or_else(|| "/dev/nvidiactl".into());
        let gpu = Self(Some(file.into()));
        if gpu.is_gone() { Self(None) } else { gpu }
    }

    /// Opening it wakes no device.
    pub(super) fn is_gone(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|file| File::open(file).is_err())
    }
}

/// Whom docker's `--user` names; `None` where that is who we are.
fn wanted_user(root: &Path, wanted: &str) -> Result<Option<User>, String> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let (uid, of_the_user) = account(root, "passwd", user)
        .or_else(|| Some((user.parse().ok()?, 0)))
        .ok_or_else(|| format!("options: --user: the image has no user {user}."))?;
    let gid = group.map_or(Some(of_the_user), |group| {
        let known = account(root, "group", group).map(|(gid, _)| gid);
        known.or_else(|| group.parse().ok())
    });
    let gid = gid.ok_or_else(|| {
        format!(
            "options: --user: the image has no group {}.",
            group.unwrap_or_default()
        )
    })?;
    let (own, own_group) = (rustix::process::getuid(), rustix::process::getgid());
    if (own.as_raw(), own_group.as_raw()) == (uid, gid) {
        return Ok(None);
    }
    if !own.is_root() {
        return Err(format!(
            "options: --user: the image's own user is {}, and only root may become another. A pool can start all jobs as root (spec.jobContainers.runAsUser: 0).",
            own.as_raw()
        ));
    }
    Ok(Some(User { uid, gid }))
}

/// Numbers of a line of `/etc/passwd` (user and group) or `/etc/group` (group, and nothing), by name or number.
fn account(root: &Path, file: &str, wanted: &str) -> Option<(u32, u32)> {
    let text = read(&root.join("etc").join(file)).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
        let group = fields.next().and_then(|group| group.parse().ok());
        (name == wanted || number == wanted)
            .then(|| Some((number.parse().ok()?, group.unwrap_or_default())))?
    })
}

/// Docker's names of limits.
fn limit(wanted: &Ulimit) -> Result<(Resource, Rlimit), String> {
    let name = &wanted.name;
    let resource = match name.as_str() {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return Err(format!("options: --ulimit: there is no limit {name}.")),
    };
    let limit = Rlimit {
        current: wanted.soft,
        maximum: wanted.hard,
    };
    let now = rustix::process::getrlimit(resource);
    let is_more = match (limit.maximum, now.maximum) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(wanted), Some(now)) => wanted > now,
    };
    // Ours may be raised as well. Whether one may is seen from trying.
    let raised = Rlimit {
        current: now.current,
        maximum: limit.maximum,
    };
    if is_more && rustix::process::setrlimit(resource, raised).is_err() {
        return Err(format!(
            "options: --ulimit {name}: this node allows at most {}.",
            now.maximum.unwrap_or_default()
        ));
    }
    Ok((resource, limit))
}

/// A name for a folder, where nothing else has it.
fn link(Link { path, target }: &Link) -> Result<(), String> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(target)?;
        let path = Path::new(path);
        if path.canonicalize().ok() == Some(Path::new(target).canonicalize()?) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(target, path)
    };
    make().map_err(|error| {
        format!("volumes: {path} could not be made to be {target} in the job's container: {error}. The image's user must be root for that, and the folder empty.")
    })
}

/// Writes names into the file that all containers of the pod have. A sentence where that is not ours to do.
fn name_hosts(hosts: &[Host]) -> Option<String> {
    if hosts.is_empty() {
        return None;
    }
    let file = env::var_os(script::HOSTS_FILE).unwrap_or_else(|| "/etc/hosts".into());
    let lines: Vec<String> = hosts
        .iter()
        .map(|Host { name, address }| format!("{address}\t{name}\n"))
        .collect();
    let written = File::options()
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(format!("\n{}", lines.concat()).as_bytes()));
    let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    written.err().map(|error| {
        format!(
            "The names {} could not be written into /etc/hosts: {error}. The image's user is not root; use the addresses, or let the pool's template name them in hostAliases.",
            names.join(", ")
        )
    })
}

/// The agent brings another Node.js for Alpine.
fn is_alpine(root: &Path) -> bool {
    let files = fs::read_dir(root.join("etc"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter(|file| file.file_name().to_string_lossy().ends_with("release"))
        .filter_map(|file| read(&file.path()).ok())
        .any(|text| {
            text.lines().any(|line| {
                line.strip_prefix("ID=")
                    .is_some_and(|id| id.trim_matches(['"', '\'']).eq_ignore_ascii_case("alpine"))
            })
        })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = vec![];
    File::open(path)?.take(LIMIT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root of an image with these files.
    fn image(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = env::temp_dir().join(format!("runner-init-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("etc")).unwrap();
        for (name, text) in files {
            fs::write(root.join("etc").join(name), text).unwrap();
        }
        root
    }

    #[test]
    fn alpine_is_known_by_its_files() {
        for (files, expected) in [
            (
                &[("os-release", "NAME=\"Alpine Linux\"\nID=alpine\n")][..],
                true,
            ),
            (&[("os-release", "ID=\"alpine\"\n")], true),
            (
                &[("alpine-release", "3.20\n"), ("os-release", "ID=alpine")],
                true,
            ),
            (&[("os-release", "ID=ubuntu\nID_LIKE=debian\n")], false),
            (&[("os-release", "ID=wolfi\nID_LIKE=alpine\n")], false),
            (&[("lsb-release", "DISTRIB_ID=alpine\n")], false),
            (&[], false),
        ] {
            assert_eq!(is_alpine(&image("alpine", files)), expected, "{files:?}");
        }
        assert!(!is_alpine(Path::new("/no/such/image")));
    }

    #[test]
    fn a_user_is_named_as_docker_does() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nci:x:1001:118::/home/ci:/bin/sh\n";
        let root = image(
            "user",
            &[("passwd", passwd), ("group", "video:x:44:ci\nci:x:118:\n")],
        );
        if !rustix::process::getuid().is_root() {
            return;
        }
        let user = |uid, gid| Ok(Some(User { uid, gid }));
        for (wanted, expected) in [
            ("ci", user(1001, 118)),
            ("1001", user(1001, 118)),
            ("4242", user(4242, 0)),
            ("ci:video", user(1001, 44)),
            ("ci:7", user(1001, 7)),
            ("4242:4243", user(4242, 4243)),
            ("root", Ok(None)),
            ("0:0", Ok(None)),
        ] {
            assert_eq!(wanted_user(&root, wanted), expected, "{wanted}");
        }
        for wanted in ["nobody-here", "ci:nogroup", "", "-1", "99999999999"] {
            assert!(wanted_user(&root, wanted).is_err(), "{wanted}");
        }
    }

    #[test]
    fn a_volume_gets_its_name_where_nothing_has_it() {
        let root = image("link", &[]);
        let name = |name: &str| root.join(name).to_string_lossy().into_owned();
        let make = |path: &str| {
            link(&Link {
                path: name(path),
                target: name("data"),
            })
        };
        // A name in a folder that is not there, twice, and in the place of an empty folder
        fs::create_dir(root.join("empty")).unwrap();
        for path in ["new/cache", "new/cache", "empty"] {
            assert_eq!(make(path), Ok(()));
            assert_eq!(fs::read_link(root.join(path)).unwrap(), root.join("data"));
        }
        assert_eq!(make("data"), Ok(()), "it is itself");
        // Not in the place of what is there
        let said = make("etc/../etc").and(make("etc"));
        fs::write(root.join("etc/x"), "").unwrap();
        let said = said.and(make("etc")).unwrap_err();
        assert!(
            said.contains("must be root for that, and the folder empty"),
            "{said}"
        );
    }

    #[test]
    fn limits_have_dockers_names() {
        let wanted = |name: &str, soft, hard| {
            limit(&Ulimit {
                name: name.into(),
                soft,
                hard,
            })
        };
        assert!(wanted("nofile", Some(64), Some(128)).is_ok());
        assert!(wanted("core", Some(0), Some(0)).is_ok());
        assert!(wanted("files", Some(1), Some(1)).is_err());
    }
}
