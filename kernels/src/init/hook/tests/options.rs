use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn pool() -> Pool {
    Pool {
        shm_bytes: Some(1 << 30),
        volumes: vec![],
    }
}

fn judged(text: &str, role: Role) -> Wishes {
    let mut wishes = Wishes::default();
    judge(text, role, &pool(), &mut wishes);
    wishes
}

/// What became of a text, in one word.
fn became(text: &str, role: Role) -> &'static str {
    let wishes = judged(text, role);
    let said = |word: &str| wishes.said.iter().any(|sentence| sentence.contains(word));
    match () {
        () if !wishes.refused.is_empty() => "refused",
        () if said("satisfied") => "satisfied",
        () if said("approximated") => "approximated",
        () if said("ignored") => "ignored",
        () => {
            assert!(wishes.said.is_empty(), "{:?}", wishes.said);
            "honoured"
        }
    }
}

/// Every option: for a job's container, and for a service.
const TABLE: &[(&str, &str, &str)] = &[
    ("--add-host db:10.0.0.1", "honoured", "honoured"),
    ("--add-host db:host-gateway", "refused", "refused"),
    ("--annotation a=b", "ignored", "ignored"),
    ("-a stdout", "ignored", "ignored"),
    ("--attach stdout", "ignored", "ignored"),
    ("--blkio-weight 10", "ignored", "ignored"),
    ("--blkio-weight-device /dev/sda:10", "ignored", "ignored"),
    ("--cap-add SYS_ADMIN", "refused", "refused"),
    ("--cap-drop ALL", "ignored", "ignored"),
    ("--cgroup-parent x", "ignored", "ignored"),
    ("--cgroupns host", "refused", "refused"),
    ("--cgroupns private", "satisfied", "satisfied"),
    ("--cidfile x", "ignored", "ignored"),
    ("--cpu-period 1", "ignored", "ignored"),
    ("--cpu-quota 1", "ignored", "ignored"),
    ("--cpu-rt-period 1", "ignored", "ignored"),
    ("--cpu-rt-runtime 1", "ignored", "ignored"),
    ("--cpu-shares 1", "ignored", "ignored"),
    ("--cpus 2", "ignored", "ignored"),
    ("--cpuset-cpus 0-3", "ignored", "ignored"),
    ("--cpuset-mems 0", "ignored", "ignored"),
    ("-d", "ignored", "ignored"),
    ("--detach", "ignored", "ignored"),
    ("--device /dev/nvidia0:/dev/nvidia0", "satisfied", "refused"),
    ("--device nvidia.com/gpu=all", "satisfied", "refused"),
    ("--device /dev/infiniband", "refused", "refused"),
    ("--device-cgroup-rule x", "refused", "refused"),
    ("--device-read-bps x", "ignored", "ignored"),
    ("--device-read-iops x", "ignored", "ignored"),
    ("--device-write-bps x", "ignored", "ignored"),
    ("--device-write-iops x", "ignored", "ignored"),
    ("--disable-content-trust", "ignored", "ignored"),
    ("--dns 1.1.1.1", "ignored", "ignored"),
    ("--dns-opt x", "ignored", "ignored"),
    ("--dns-option x", "ignored", "ignored"),
    ("--dns-search x", "ignored", "ignored"),
    ("--domainname x", "ignored", "ignored"),
    ("--entrypoint ''", "satisfied", "honoured"),
    ("-e A=b", "honoured", "honoured"),
    ("--env A", "ignored", "ignored"),
    ("--env-file x", "refused", "refused"),
    ("--expose 80", "satisfied", "satisfied"),
    ("--gpus all", "satisfied", "refused"),
    ("--group-add video", "ignored", "ignored"),
    ("--health-cmd 'pg_isready -U x'", "ignored", "approximated"),
    ("--health-interval 10s", "ignored", "approximated"),
    ("--health-retries 5", "ignored", "approximated"),
    ("--health-start-interval 1s", "ignored", "approximated"),
    ("--health-start-period 1s", "ignored", "approximated"),
    ("--health-timeout 5s", "ignored", "approximated"),
    ("--hostname x", "ignored", "honoured"),
    ("-h x", "ignored", "honoured"),
    ("--init", "satisfied", "satisfied"),
    ("-i", "ignored", "ignored"),
    ("--interactive", "ignored", "ignored"),
    ("--ip 10.0.0.2", "ignored", "ignored"),
    ("--ip6 ::2", "ignored", "ignored"),
    ("--ipc=host", "satisfied", "satisfied"),
    ("--ipc container:x", "refused", "refused"),
    ("--isolation default", "ignored", "ignored"),
    ("--kernel-memory 1g", "ignored", "ignored"),
    ("--label a=b", "ignored", "ignored"),
    ("--label-file x", "ignored", "ignored"),
    ("--link x", "ignored", "ignored"),
    ("--link-local-ip x", "ignored", "ignored"),
    ("--log-driver none", "ignored", "ignored"),
    ("--log-opt a=b", "ignored", "ignored"),
    ("--mac-address x", "ignored", "ignored"),
    ("-m 4g", "ignored", "ignored"),
    ("--memory 4g", "ignored", "ignored"),
    ("--memory-reservation 4g", "ignored", "ignored"),
    ("--memory-swap -1", "ignored", "ignored"),
    ("--memory-swappiness 0", "ignored", "ignored"),
    (
        "--mount type=volume,source=c,target=/c",
        "honoured",
        "honoured",
    ),
    ("--mount type=bind,target=/c", "refused", "refused"),
    (
        "--mount type=image,source=x,target=/c",
        "refused",
        "refused",
    ),
    ("--name x", "ignored", "honoured"),
    ("--net host", "ignored", "ignored"),
    ("--net-alias x", "ignored", "honoured"),
    ("--network bridge", "ignored", "ignored"),
    ("--network none", "refused", "refused"),
    ("--network container:x", "refused", "refused"),
    ("--network-alias x", "ignored", "honoured"),
    ("--no-healthcheck", "satisfied", "satisfied"),
    ("--oom-kill-disable", "ignored", "ignored"),
    ("--oom-score-adj 1", "ignored", "ignored"),
    ("--pid host", "refused", "refused"),
    ("--pid=", "satisfied", "satisfied"),
    ("--pids-limit 100", "ignored", "ignored"),
    ("--platform windows/amd64", "refused", "refused"),
    ("--platform linux/s390x", "refused", "refused"),
    ("--platform linux", "satisfied", "satisfied"),
    ("--privileged", "refused", "refused"),
    ("--privileged=true", "refused", "refused"),
    ("--privileged=false", "honoured", "honoured"),
    ("-p 80:80", "satisfied", "satisfied"),
    ("--publish 80:80", "satisfied", "satisfied"),
    ("-P", "satisfied", "satisfied"),
    ("--publish-all", "satisfied", "satisfied"),
    ("--pull always", "ignored", "ignored"),
    ("-q", "ignored", "ignored"),
    ("--quiet", "ignored", "ignored"),
    ("--read-only", "ignored", "ignored"),
    ("--restart always", "ignored", "ignored"),
    ("--rm", "satisfied", "satisfied"),
    ("--runtime nvidia", "satisfied", "ignored"),
    ("--runtime=runc", "ignored", "ignored"),
    (
        "--security-opt no-new-privileges:true",
        "ignored",
        "ignored",
    ),
    ("--security-opt seccomp=unconfined", "refused", "refused"),
    ("--security-opt apparmor=unconfined", "refused", "refused"),
    ("--shm-size 1g", "satisfied", "ignored"),
    ("--shm-size=1073741825", "refused", "ignored"),
    ("--shm-size much", "refused", "ignored"),
    ("--stop-signal INT", "ignored", "ignored"),
    ("--stop-timeout 1", "ignored", "ignored"),
    ("--storage-opt size=1g", "ignored", "ignored"),
    ("--sysctl a=b", "refused", "refused"),
    ("--tmpfs /run:size=1m", "approximated", "ignored"),
    ("-t", "ignored", "ignored"),
    ("--tty", "ignored", "ignored"),
    ("--ulimit nofile=1024:2048", "honoured", "ignored"),
    ("--ulimit nofile", "refused", "ignored"),
    ("--use-api-socket", "refused", "refused"),
    ("-u 1000", "honoured", "refused"),
    ("--user ci:video", "honoured", "refused"),
    ("--userns host", "refused", "refused"),
    ("--userns private", "satisfied", "satisfied"),
    ("--uts host", "refused", "refused"),
    ("--uts private", "satisfied", "satisfied"),
    ("-v cache:/cache", "honoured", "honoured"),
    ("--volume /cache", "honoured", "honoured"),
    ("--volume-driver x", "refused", "refused"),
    ("--volumes-from x", "refused", "refused"),
    ("-w /src", "honoured", "honoured"),
    ("--workdir=/src", "honoured", "honoured"),
    // What is no option of docker's
    ("--no-such-option", "refused", "refused"),
    ("-z", "refused", "refused"),
    ("--", "refused", "refused"),
    ("-", "refused", "refused"),
    ("image", "refused", "refused"),
    ("--cpus", "refused", "refused"),
    ("--name 'x", "refused", "refused"),
];

#[test]
fn every_option_has_its_row() {
    for (text, job, service) in TABLE {
        assert_eq!(became(text, Role::Job), *job, "{text}");
        assert_eq!(became(text, Role::Service), *service, "{text}");
    }
    let tried: BTreeSet<&str> = TABLE
        .iter()
        .filter_map(|(text, ..)| text.split([' ', '=']).next()?.strip_prefix('-'))
        .collect();
    for (long, letter, ..) in OPTIONS {
        assert!(
            tried.contains(&*format!("-{long}"))
                || letter.is_some_and(|letter| tried.contains(&*letter.to_string())),
            "--{long} is not in the table"
        );
    }
    let names: BTreeSet<&str> = OPTIONS.iter().map(|row| row.0).collect();
    assert_eq!(names.len(), OPTIONS.len());
}

#[test]
fn options_are_written_in_dockers_many_ways() {
    let env = |text: &str| judged(text, Role::Job).env.into_iter().collect::<Vec<_>>();
    let expected = vec![("A".to_owned(), "b c".to_owned())];
    for text in [
        "-e 'A=b c'",
        "-eA='b c'",
        "-e=A='b c'",
        "--env=A='b c'",
        "--env 'A=b c'",
        "-ite 'A=b c'",
        "-it -e \"A=b c\" --init",
    ] {
        assert_eq!(env(text), expected, "{text}");
    }
    assert_eq!(
        env("-e A= -e B=x=y"),
        [("A".into(), String::new()), ("B".into(), "x=y".into())]
    );
}

#[test]
fn what_is_honoured_is_handed_on() {
    let wishes = judged(
        "-w /src -u ci:video --ulimit nofile=64:-1 --ulimit core=0 --add-host db=[fd00::1] -v /data/x:/x:ro --mount type=volume,src=c,dst=/c,readonly --tmpfs /t:size=1m",
        Role::Job,
    );
    assert_eq!(wishes.workdir.as_deref(), Some("/src"));
    assert_eq!(wishes.user.as_deref(), Some("ci:video"));
    let limit = |name: &str, soft, hard| Ulimit {
        name: name.into(),
        soft,
        hard,
    };
    assert_eq!(
        wishes.ulimits,
        [
            limit("nofile", Some(64), None),
            limit("core", Some(0), Some(0))
        ]
    );
    let host = Host {
        name: "db".into(),
        address: "fd00::1".into(),
    };
    assert_eq!(wishes.hosts, [host]);
    let mount = |source: &str, target: &str, read_only| Mount {
        source_volume_path: source.into(),
        target_volume_path: target.into(),
        read_only,
    };
    assert_eq!(
        wishes.mounts,
        [
            mount("/data/x", "/x", true),
            mount("c", "/c", true),
            mount("", "/t", false)
        ]
    );
    let wishes = judged(
        "--entrypoint run --network-alias db --name other",
        Role::Service,
    );
    assert_eq!(wishes.entry_point.as_deref(), Some("run"));
    assert_eq!(wishes.names, ["db", "other"]);
}

#[test]
fn sizes_are_dockers() {
    for (text, expected) in [
        ("64", Some(64)),
        ("64b", Some(64)),
        ("1k", Some(1 << 10)),
        ("2MB", Some(2 << 20)),
        ("8g", Some(8 << 30)),
        ("1GiB", Some(1 << 30)),
        ("", None),
        ("g", None),
        ("-1", None),
        ("99999999999999t", None),
    ] {
        assert_eq!(bytes(text), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn any_options_are_understood_or_refused_and_no_value_is_repeated(
        words in proptest::collection::vec("--?[a-z-]{0,12}=?|s3cret|/s3cret:/s3cret|-[a-zP]{1,3}s3cret", 0..6),
        any in any::<String>(),
    ) {
        for text in [words.join(" "), any] {
            for role in [Role::Job, Role::Service] {
                let wishes = judged(&text, role);
                let sentences = wishes.said.iter().chain(&wishes.refused);
                prop_assert!(sentences.into_iter().all(|sentence| !sentence.contains("s3cret")));
            }
        }
    }
}

const BEGIN: &str = "<!-- generated from the table of options: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

/// `UPDATE_DOCS=1` writes the guide's table anew.
#[test]
fn the_guide_has_the_table_of_options() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/guides/container-jobs.md"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let now = format!("{head}{BEGIN}\n{}\n{END}{tail}", guide());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(path, now).unwrap();
    }
    assert!(
        text == now,
        "docs/guides/container-jobs.md is stale: UPDATE_DOCS=1 cargo test -p cuda-smoke options"
    );
}

/// What becomes of an option in a job's container, and in a service.
type Fates = (String, String);

/// A row for each pair of fates, in the words of the log, with all options that share it.
fn guide() -> String {
    let mut rows: Vec<(Fates, Vec<String>)> = vec![];
    let tried = tried();
    for (option, text, fates) in &tried {
        let of_it = || tried.iter().filter(|(other, ..)| other == option);
        // A letter says nothing new beside its long name.
        let is_known = of_it().any(|(_, other, same)| other.starts_with("--") && same == fates);
        if !text.starts_with("--") && is_known {
            continue;
        }
        let shown = if of_it().all(|(.., other)| other == fates) {
            format!("`--{option}`")
        } else {
            // It depends on the value.
            format!("`{text}`")
        };
        match rows.iter_mut().find(|row| row.0 == *fates) {
            Some(row) if row.1.contains(&shown) => {}
            Some(row) => row.1.push(shown),
            None => rows.push((fates.clone(), vec![shown])),
        }
    }
    let rank = |fate: &str| {
        let mut words = ["honored", "satisfied", "approximated", "ignored"].iter();
        words.position(|word| fate.starts_with(word)).unwrap_or(9)
    };
    rows.sort_by_key(|((job, service), _)| (rank(job), rank(service)));
    let rows = rows.iter().map(|((job, service), shown)| {
        let service = if service == job { "the same" } else { service };
        format!("| {} | {job} | {service} |\n", shown.join(", "))
    });
    let head = "| `options:` | in `container:` | in `services:` |\n|---|---|---|\n";
    head.to_owned() + &rows.collect::<Vec<_>>().concat()
}

/// The rows of our table that are options, by name.
fn tried() -> Vec<(&'static str, &'static str, Fates)> {
    let all = TABLE.iter().filter_map(|(text, job, service)| {
        let written = text.split([' ', '=']).next()?.trim_start_matches('-');
        let row = OPTIONS.iter().find(|(name, letter, ..)| {
            *name == written || letter.is_some_and(|letter| written == letter.to_string())
        })?;
        let fates = (
            fate(text, job, Role::Job)?,
            fate(text, service, Role::Service)?,
        );
        Some((row.0, *text, fates))
    });
    all.collect()
}

/// What becomes of an option, and what the log says of it; `None` where it is written wrongly.
fn fate(text: &str, became: &str, role: Role) -> Option<String> {
    let wishes = judged(text, role);
    let Some(said) = wishes.refused.first().or(wishes.said.first()) else {
        return Some("honored".into());
    };
    let (_, said) = said.strip_prefix("options: --")?.split_once(": ")?;
    let said = said.trim_end_matches('.');
    Some(match became {
        "refused" => format!("refused: {said}"),
        _ => said.into(),
    })
}
