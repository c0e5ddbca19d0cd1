//! What a plan holds, for made-up hosts and images.

use super::*;
use crate::settings::{Action, Bind, Contain, Environment, Fakeroot, GpuSettings, Home, Variables};
use siphon_image::elf::X86_64;
use siphon_image::open::Script;
use std::collections::{BTreeMap, BTreeSet};

fn settings() -> RunSettings {
    RunSettings {
        instance: None,
        image: "/images/a.sif".into(),
        action: Action::Exec(vec!["true".into()]),
        app: None,
        binds: Vec::new(),
        home: None,
        left_out: Default::default(),
        cwd: None,
        overlays: Vec::new(),
        writes: Writes::Refused,
        memory_bytes: None,
        fakeroot: None,
        clean_env: false,
        variables: Variables::default(),
        less_for_root: Vec::new(),
        limits: Vec::new(),
        limits_file: None,
        contain: Contain::default(),
        namespaces: Namespaces::default(),
        gpu: GpuSettings::default(),
        quiet: false,
        warnings: Vec::new(),
    }
}

fn image() -> Facts {
    Facts {
        has_shell: true,
        passwd: Some("root:x:0:0:root:/root:/bin/bash\n".into()),
        group: Some("root:x:0:\n".into()),
        ..Facts::default()
    }
}

fn host() -> HostFacts {
    let variables = [("PATH", "/host/bin"), ("LANG", "C.UTF-8"), ("LD_LIBRARY_PATH", "/x"), ("APPTAINER_BIND", "/y")];
    HostFacts::made_up(
        Environment::new(variables.map(|(name, value)| (name.into(), value.into()))),
        &["/tmp", "/var/tmp", "/home/me", "/kept", "/data", "/data/deep", "/work"],
        &["/etc/hosts", "/etc/localtime", "/data/file", "/dev/null"],
    )
}

fn targets(plan: &Plan) -> Vec<&str> {
    plan.files.iter().chain(&plan.mounts).map(|mount| mount.target.to_str().unwrap()).collect()
}

fn variable<'a>(plan: &'a Plan, name: &str) -> Option<&'a str> {
    plan.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap())
}

#[test]
fn the_default_mounts_are_singularitys() {
    let plan = plan(&settings(), &image(), &host()).unwrap();

    let expected = [
        "/etc/resolv.conf",
        "/etc/passwd",
        "/etc/group",
        "/dev",
        "/proc",
        "/sys",
        "/etc/localtime",
        "/etc/hosts",
        "/home/me",
        "/tmp",
        "/var/tmp",
        "/work",
    ];
    assert_eq!(targets(&plan), expected);
    assert!(!plan.writable_root);
}

#[test]
fn binds_are_made_from_the_root_down_and_need_mount_points_only_outside_others() {
    let bind = |source: &str, destination: &str| Bind {
        source: source.into(),
        destination: destination.into(),
        read_only: true,
        image: None,
        not_nested: false,
    };
    let binds = vec![bind("/data/deep", "/new/deep"), bind("/data", "/new"), bind("/data/file", "/etc/file")];

    let plan = plan(&RunSettings { binds, ..settings() }, &image(), &host()).unwrap();

    let targets = targets(&plan);
    let place = |wanted: &str| targets.iter().position(|target| *target == wanted).unwrap();
    assert!(place("/new") < place("/new/deep"));
    let points = plan.mount_points();
    assert!(points.contains(&("/new".into(), SourceKind::Directory)));
    assert!(points.contains(&("/etc/file".into(), SourceKind::File)));
    assert!(!points.iter().any(|(path, _)| path == Path::new("/new/deep")));
}

#[test]
fn a_bind_without_a_source_ends_the_run() {
    let (source, destination) = ("/nosuch".into(), "/x".into());
    let bind = Bind { source, destination, read_only: false, image: None, not_nested: false };

    let refused = plan(&RunSettings { binds: vec![bind], ..settings() }, &image(), &host());

    assert_eq!(refused, Err(PlanError::NoSource("/nosuch".into())));
}

#[test]
fn the_home_can_have_another_name_and_passwd_says_so() {
    let home = Home { source: "/home/me".into(), destination: Some("/home".into()) };

    let plan = plan(&RunSettings { home: Some(home), ..settings() }, &image(), &host()).unwrap();

    assert_eq!(variable(&plan, "HOME"), Some("/home"));
    let passwd = plan.files.iter().find(|mount| mount.target == Path::new("/etc/passwd")).unwrap();
    let What::File(content) = &passwd.what else { panic!("passwd is a file") };
    let text = String::from_utf8(content.clone()).unwrap();
    assert_eq!(text, "root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000::/home:/bin/sh\n");
}

#[test]
fn a_chosen_home_that_the_host_lacks_is_empty() {
    let home = Home { source: "/nosuch".into(), destination: Some("/home".into()) };

    let plan = plan(&RunSettings { home: Some(home), ..settings() }, &image(), &host()).unwrap();

    let mount = plan.mounts.iter().find(|mount| mount.target == Path::new("/home")).unwrap();
    assert_eq!(mount.what, What::Empty { mode: 0o750 });
    assert_eq!(plan.warnings, ["/nosuch doesn't exist on the host: the home directory is empty and forgotten"]);
}

#[test]
fn chosen_library_paths_keep_the_hosts_libraries_reachable() {
    let injected = BTreeMap::from([("LD_LIBRARY_PATH".into(), "/x".into())]);
    let variables = Variables { injected, ..Variables::default() };

    let plan = plan(&RunSettings { variables, ..settings() }, &image(), &host()).unwrap();

    assert_eq!(variable(&plan, "SIPHON_SET_LD_LIBRARY_PATH"), Some("/x:/.singularity.d/libs"));
}

#[test]
fn only_root_can_gain_privileges_inside() {
    let root = HostFacts { uid: 0, ..host() };

    assert!(plan(&settings(), &image(), &host()).unwrap().no_new_privileges);
    assert!(!plan(&settings(), &image(), &root).unwrap().no_new_privileges);
}

#[test]
fn processes_of_their_own_bring_a_proc_of_their_own() {
    let namespaces = Namespaces { processes: Processes::Own, ..Namespaces::default() };

    let plan = plan(&RunSettings { namespaces, ..settings() }, &image(), &host()).unwrap();

    let proc: Vec<_> = plan.mounts.iter().filter(|mount| mount.target == Path::new("/proc")).collect();
    assert_eq!(proc.len(), 1);
    assert_eq!((&proc[0].what, proc[0].failure), (&What::Processes, Failure::Fatal));
}

#[test]
fn a_host_name_is_written_down_inside() {
    let namespaces = Namespaces { uts: true, hostname: Some("node".into()), ..Namespaces::default() };

    let plan = plan(&RunSettings { namespaces, ..settings() }, &image(), &host()).unwrap();

    let file = plan.files.iter().find(|mount| mount.target == Path::new("/etc/hostname")).unwrap();
    assert_eq!(file.what, What::File(b"node\n".to_vec()));
}

fn what<'a>(plan: &'a Plan, target: &str) -> &'a What {
    &plan.mounts.iter().find(|mount| mount.target == Path::new(target)).unwrap().what
}

#[test]
fn a_contained_run_has_devices_and_directories_of_its_own() {
    let contain = Contain { contained: true, scratch: vec!["/scr".into()], ..Contain::default() };
    let node = |source: &str, target: &str| gpu::Device {
        source: source.into(),
        target: target.into(),
        kind: SourceKind::File,
    };
    let devices = vec![node("/dev/nvidia1", "/dev/nvidia0"), node("/dev/x", "/elsewhere")];
    let gpu = gpu::Gpu { devices, ..gpu::Gpu::default() };
    let on_terminal = HostFacts { terminal: Some("/dev/pts/3".into()), gpu, ..host() };

    let plan = plan(&RunSettings { contain, ..settings() }, &image(), &on_terminal).unwrap();

    let nodes = vec![node("/dev/null", "/dev/null"), node("/dev/nvidia1", "/dev/nvidia0")];
    let expected = Devices { nodes, terminals: true, console: Some("/dev/pts/3".into()), queues: false };
    assert_eq!(what(&plan, "/dev"), &What::Devices(expected));
    for (target, mode) in [("/home/me", 0o750), ("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/scr", 0o750)] {
        assert_eq!(what(&plan, target), &What::Empty { mode }, "{target}");
    }
    assert!(!targets(&plan).contains(&"/work"));
    assert_eq!(plan.start, Start::FirstOf(vec!["/home/me".into(), "/".into()]));
}

#[test]
fn a_contained_run_without_a_home_starts_at_the_top() {
    let contain = Contain { contained: true, ..Contain::default() };
    let left_out = ["home".to_owned()].into_iter().collect();

    let plan = plan(&RunSettings { contain, left_out, ..settings() }, &image(), &host()).unwrap();

    assert_eq!(plan.start, Start::At("/".into()));
}

#[test]
fn a_chosen_directory_keeps_what_a_contained_run_writes() {
    let contain = |workdir: &str| Contain {
        contained: true,
        workdir: Some(workdir.into()),
        scratch: vec!["/a/../b".into()],
        ..Contain::default()
    };

    let kept = plan(&RunSettings { contain: contain("/kept"), ..settings() }, &image(), &host()).unwrap();
    let missing = plan(&RunSettings { contain: contain("nosuch"), ..settings() }, &image(), &host());

    assert_eq!(what(&kept, "/var/tmp"), &What::Kept { source: "/kept/var_tmp".into(), mode: 0o1777 });
    assert_eq!(what(&kept, "/a/../b"), &What::Kept { source: "/kept/scratch/a/b".into(), mode: 0o750 });
    assert_eq!(missing, Err(PlanError::NoWorkdir("/work/nosuch".into())));
}

#[test]
fn chosen_name_servers_take_the_place_of_the_hosts() {
    let contain = Contain { name_servers: vec!["1.2.3.4".parse().unwrap()], ..Contain::default() };

    let plan = plan(&RunSettings { contain, ..settings() }, &image(), &host()).unwrap();

    assert_eq!(plan.files[0].what, What::File(b"nameserver 1.2.3.4\n".to_vec()));
}

#[test]
fn root_does_not_keep_what_it_asked_to_lose() {
    let asked = RunSettings { less_for_root: vec!["--no-privs"], ..settings() };
    let root = HostFacts { uid: 0, ..host() };

    assert!(plan(&asked, &image(), &host()).is_ok());
    assert_eq!(plan(&asked, &image(), &root), Err(PlanError::LessForRoot("--no-privs")));
}

#[test]
fn files_of_variables_name_what_they_assign() {
    let by_flag = BTreeSet::from(["B".into()]);
    let variables = Variables { by_flag, ..Variables::default() };
    let with_file = HostFacts { env_files: vec!["A=1\n".into(), "export B=2; C=3".into()], ..host() };

    let plan = plan(&RunSettings { variables, ..settings() }, &image(), &with_file).unwrap();

    assert_eq!(variable(&plan, "SIPHON_FILE_NAMES"), Some("A C"));
    assert_eq!(variable(&plan, "SIPHON_FILE"), Some("A=1\n\nexport B=2; C=3\n"));
    assert_eq!(plan.warnings, ["Ignored environment file variable B: override from --env"]);
}

#[test]
fn blocked_variables_of_the_host_stay_outside() {
    let variables = Variables { blocked: BTreeSet::from(["LANG".into()]), ..Variables::default() };

    let plan = plan(&RunSettings { variables, ..settings() }, &image(), &host()).unwrap();

    assert_eq!(variable(&plan, "SIPHON_HOST_NAMES"), Some(""));
}

#[test]
fn the_hosts_path_libraries_and_orders_stay_outside() {
    let plan = plan(&settings(), &image(), &host()).unwrap();

    assert_eq!(variable(&plan, "USER_PATH"), Some("/host/bin"));
    assert_eq!(variable(&plan, "SIPHON_HOST_LANG"), Some("C.UTF-8"));
    assert_eq!(variable(&plan, "SIPHON_HOST_NAMES"), Some("LANG"));
    assert_eq!(variable(&plan, "APPTAINER_BIND"), Some(""));
    assert_eq!(variable(&plan, "APPTAINER_NAME"), Some("a.sif"));
}

#[test]
fn a_clean_environment_has_no_variables_of_the_host() {
    let plan = plan(&RunSettings { clean_env: true, ..settings() }, &image(), &host()).unwrap();

    assert_eq!(variable(&plan, "SIPHON_HOST_NAMES"), Some(""));
    assert_eq!(variable(&plan, "LANG"), Some("C"));
    assert_eq!(variable(&plan, "USER_PATH"), None);
}

#[test]
fn an_image_without_a_shell_runs_commands_only() {
    let script = Script { name: "10-docker2singularity.sh".into(), text: "export A=\"${A:-\"1\"}\"\n".into() };
    let bare = Facts { has_shell: false, env_scripts: vec![script], ..image() };

    let exec = plan(&settings(), &bare, &host()).unwrap();
    let run = plan(&RunSettings { action: Action::Run(Vec::new()), ..settings() }, &bare, &host());

    assert_eq!(exec.argv, ["true"]);
    assert_eq!(variable(&exec, "A"), Some("1"));
    assert_eq!(run, Err(PlanError::NoShell("run")));
}

#[test]
fn the_driver_is_bound_where_it_was_asked_for() {
    let candidate =
        gpu::Candidate { name: "libcuda.so.1".into(), path: "/lib/libcuda.so.1".into(), kind: Some(X86_64) };
    let driver = gpu::Gpu {
        own: Some(X86_64),
        candidates: vec![candidate],
        programs: vec!["/opt/nv/nvidia-smi".into()],
        ..gpu::Gpu::default()
    };
    let asked = RunSettings { gpu: GpuSettings { nv: true, ..GpuSettings::default() }, ..settings() };

    let found = plan(&asked, &image(), &HostFacts { gpu: driver, ..host() }).unwrap();
    let missing = plan(&asked, &image(), &host()).unwrap();

    assert!(targets(&found).contains(&"/.singularity.d/libs"));
    assert!(targets(&found).contains(&"/usr/bin/nvidia-smi"));
    assert_eq!(variable(&found, "SIPHON_LIBRARIES"), Some("/.singularity.d/libs"));
    assert_eq!(missing.warnings, ["Could not find any nv files on this host!"]);
}

#[test]
fn variables_of_a_device_pass_as_they_are_and_the_users_win() {
    let mut devices = gpu::Gpu::default();
    devices.injection.variables = vec![("A".into(), "$x".into()), ("B".into(), "device".into())];
    let injected = BTreeMap::from([("B".into(), "user".into())]);
    let variables = Variables { injected, ..Variables::default() };

    let plan = plan(&RunSettings { variables, ..settings() }, &image(), &HostFacts { gpu: devices, ..host() }).unwrap();

    assert_eq!(variable(&plan, "SIPHON_SET_A"), Some("\\$x"));
    assert_eq!(variable(&plan, "SIPHON_SET_B"), Some("user"));
}

#[test]
fn a_chosen_directory_must_exist_and_the_hosts_need_not() {
    let chosen = plan(&RunSettings { cwd: Some("/usr".into()), ..settings() }, &image(), &host()).unwrap();
    let default = plan(&settings(), &image(), &host()).unwrap();

    assert_eq!(chosen.start, Start::At("/usr".into()));
    assert_eq!(default.start, Start::FirstOf(vec!["/work".into(), "/home/me".into(), "/".into()]));
}

#[test]
fn an_image_is_known_by_the_name_that_was_typed() {
    for (typed, name) in [("a.sif", "/work/a.sif"), ("../b/./c.sif", "/b/c.sif"), ("/x/../../y", "/y")] {
        assert_eq!(host().cleaned(Path::new(typed)), Path::new(name));
    }
}

/// A run as root, alone or not.
fn as_root(writes: Writes, other_ids: bool) -> Plan {
    let fakeroot = Some(Fakeroot { subordinate_ids: true, pretend: true, alone: true });
    plan(&RunSettings { fakeroot, writes, ..settings() }, &image(), &HostFacts { other_ids, ..host() }).unwrap()
}

#[test]
fn root_inside_has_the_callers_home_as_its_own() {
    let plan = as_root(Writes::Refused, true);

    let home = plan.mounts.iter().find(|mount| mount.target == Path::new("/root")).unwrap();
    assert!(matches!(&home.what, What::Bind { source, .. } if source == Path::new("/home/me")));
    assert_eq!(variable(&plan, "HOME"), Some("/root"));
    assert!(!plan.no_new_privileges);
    let passwd = plan.files.iter().find(|mount| mount.target == Path::new("/etc/passwd")).unwrap();
    assert_eq!(passwd.what, What::File(b"root:x:0:0:root:/root:/bin/bash\n".to_vec()));
}

#[test]
fn root_inside_keeps_the_accounts_of_an_image_that_it_writes_to() {
    for writes in [Writes::Sandbox, Writes::Temporary] {
        let plan = as_root(writes, true);

        assert!(!targets(&plan).contains(&"/etc/passwd") && !targets(&plan).contains(&"/etc/group"));
    }
}

#[test]
fn other_users_are_pretended_only_where_root_is_alone() {
    assert!(as_root(Writes::Refused, false).pretends_ids);
    assert!(!as_root(Writes::Refused, true).pretends_ids);
    assert!(!plan(&settings(), &image(), &host()).unwrap().pretends_ids);
}

#[test]
fn a_link_of_the_image_leads_no_mount_over_an_earlier_one() {
    let mut found = plan(&settings(), &image(), &host()).unwrap();
    let both = |plan: &Plan| ["/tmp", "/var/tmp"].map(|target| targets(plan).contains(&target));
    assert_eq!(both(&found), [true, true]);

    found.leave_out_repeated(&BTreeMap::from([("/tmp".into(), "/tmp".into()), ("/var/tmp".into(), "/tmp".into())]));

    assert_eq!(both(&found), [true, false]);
}
