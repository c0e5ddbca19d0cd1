use crate::support::environment::as_user_and_as_root;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Prints the open descriptors of the shell that it is read by; the one that lists them is closed when it is looked at.
const DESCRIPTORS: &str = "for f in /proc/$$/fd/*; do [ ! -e $f ] || echo ${f##*/}; done";

/// A table of mounts by target: type and options of the uppermost one.
fn mounts(table: &str) -> BTreeMap<String, (String, String)> {
    let lines = table.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let kind = fields.iter().skip_while(|field| **field != "-").nth(1).unwrap();
        (fields[4].to_owned(), ((*kind).to_owned(), fields[5].to_owned()))
    });
    lines.collect()
}

/// The targets that come along when `source` of the host is mounted on `target` with all that is below it.
fn with_all_below<'a>(
    host: &'a BTreeMap<String, (String, String)>,
    source: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let below = host.keys().filter(move |target| Path::new(target).starts_with(source));
    below.cloned().chain([source.to_owned()])
}

/// Other tests mount in the host's tree meanwhile, below `/tmp`.
fn without_other_tests(targets: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    targets.into_iter().filter(|target| !target.starts_with("/tmp/siphon-test-")).collect()
}

#[test]
fn a_program_has_no_descriptors_but_the_callers() {
    as_user_and_as_root(|environment| {
        let image = environment.images().sif();
        environment.siphon(&["instance", "start", image, "web"]).stdout();

        for run in [
            format!("exec {image}"),
            format!("exec --pid {image}"),
            format!("exec --pid --no-init {image}"),
            format!("exec --writable-tmpfs {image}"),
            "exec instance://web".to_owned(),
        ] {
            // The tests' own caller may have left some open; the first run of an image starts its daemon.
            for opened in ["", "exec 7</dev/null; ", "exec 7</dev/null 9>&1; "] {
                let callers = environment.shell(&format!("{opened}sh -c '{DESCRIPTORS}'")).stdout();
                let programs = environment.shell(&format!("{opened}siphon {run} sh -c '{DESCRIPTORS}'")).stdout();
                assert_eq!(programs, callers, "{opened}{run}");
                assert_eq!(programs.lines().any(|number| number == "7"), !opened.is_empty(), "{programs}");
            }
        }
        environment.siphon(&["instance", "stop", "web"]).run();
    });
}

#[test]
fn a_program_sees_the_mounts_of_its_plan_and_no_others() {
    as_user_and_as_root(|environment| {
        let (image, bound) = (environment.images().sif(), environment.make_directory("bound"));
        let bind = format!("{}:/mnt/bound", bound.display());
        let host = mounts(&std::fs::read_to_string("/proc/self/mountinfo").unwrap());
        let files =
            ["/etc/hosts", "/etc/localtime", "/etc/resolv.conf"].into_iter().filter(|path| Path::new(path).exists());
        let mut single: BTreeSet<_> =
            ["/", "/etc/passwd", "/etc/group", "/mnt/bound"].into_iter().chain(files).collect();
        let home = environment.user().dir.to_str().unwrap().to_owned();
        let mut trees = vec!["/dev", "/sys", "/tmp", "/var/tmp"];
        trees.extend(Path::new(&home).exists().then_some(home.as_str()));

        for own_processes in [false, true] {
            let options: &[&str] = if own_processes { &["exec", "--pid", "-B", &bind] } else { &["exec", "-B", &bind] };
            let seen = environment.siphon(&[options, &[image, "cat", "/proc/self/mountinfo"]].concat()).stdout();

            let seen = mounts(&seen);
            let trees: &[&str] = if own_processes {
                single.insert("/proc");
                &trees
            } else {
                &[trees.as_slice(), &["/proc"]].concat()
            };
            let expected = trees.iter().flat_map(|tree| with_all_below(&host, tree));
            let expected = expected.chain(single.iter().map(|target| (*target).to_owned()));
            assert_eq!(without_other_tests(seen.keys().cloned()), without_other_tests(expected), "{options:?}");
            let (kind, flags) = &seen["/"];
            assert_eq!(kind, "fuse.siphon");
            assert!(flags.starts_with("ro,nosuid,nodev"), "{flags}");
            for target in ["/tmp", "/var/tmp", "/mnt/bound", "/etc/passwd"] {
                let flags = &seen[target].1;
                assert!(flags.contains("nosuid") && flags.contains("nodev"), "{target}: {flags}");
            }
            let images = seen.iter().filter(|(target, (kind, _))| kind == "fuse.siphon" && *target != "/");
            let images = without_other_tests(images.map(|(target, _)| target.clone()));
            assert_eq!(images, BTreeSet::new(), "the image is mounted elsewhere too");
        }
    });
}
