//! What comes of specifications such as NVIDIA's toolkit writes them.

use super::*;
use siphon_image::elf::{I386, X86_64};

const NVIDIA: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
            - path: /dev/nvidia1
              hostPath: /dev/nvidia1
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/nvidiactl
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-ctk
          args: [nvidia-ctk, hook, create-symlinks, --link, "libcuda.so.1::/usr/lib64/libcuda.so", --link, "../libnvidia-allocator.so.580.1::/usr/lib64/gbm/nvidia-drm_gbm.so"]
        - hookName: createContainer
          path: /usr/bin/nvidia-ctk
          args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib64]
        - hookName: createContainer
          path: /usr/bin/vendor-hook
    mounts:
        - hostPath: /host/lib64/libcuda.so.580.1
          containerPath: /usr/lib64/libcuda.so.580.1
          options: [ro, nosuid, nodev, bind]
        - hostPath: /host/lib64/libnvidia-allocator.so.580.1
          containerPath: /usr/lib64/libnvidia-allocator.so.580.1
          options: [ro]
        - hostPath: /host/lib32/libcuda.so.580.1
          containerPath: /usr/lib/libcuda.so.580.1
          options: [ro]
        - hostPath: /run/nvidia-persistenced/socket
          containerPath: /run/nvidia-persistenced/socket
          options: [rw]
"#;

fn file(path: &str, directory: usize, text: &str) -> SpecFile {
    SpecFile { path: path.into(), directory, spec: Spec::from_yaml(text).unwrap() }
}

fn choose(files: &[SpecFile], devices: &[&str]) -> Result<Injection, CdiError> {
    let devices: Vec<_> = devices.iter().map(|device| (*device).to_owned()).collect();
    select(files, &devices, &["/etc/cdi".into()])
}

/// NVIDIA's devices on a host that has all of their files.
fn nvidia(devices: &[&str]) -> Injection {
    let mut injection = choose(&[file("/etc/cdi/nvidia.yaml", 0, NVIDIA)], devices).unwrap();
    let library = |elf, soname: Option<&str>| Source {
        kind: SourceKind::File,
        elf: Some(elf),
        soname: soname.map(str::to_owned),
    };
    injection.sources = BTreeMap::from([
        ("/host/lib64/libcuda.so.580.1".into(), library(X86_64, Some("libcuda.so.1"))),
        ("/host/lib64/libnvidia-allocator.so.580.1".into(), library(X86_64, Some("libnvidia-allocator.so.1"))),
        ("/host/lib32/libcuda.so.580.1".into(), library(I386, Some("libcuda.so.1"))),
        ("/run/nvidia-persistenced/socket".into(), Source { kind: SourceKind::File, elf: None, soname: None }),
    ]);
    injection
}

#[test]
fn what_all_devices_need_is_taken_once() {
    let injection = nvidia(&["nvidia.com/gpu=0", "nvidia.com/gpu=all"]);

    assert_eq!(injection.variables, [("NVIDIA_VISIBLE_DEVICES".into(), "void".into())]);
    let inside: Vec<_> = injection.devices.iter().map(|(_, path)| path.to_str().unwrap()).collect();
    assert_eq!(inside, ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"]);
}

#[test]
fn files_appear_where_they_belong_and_where_links_to_them_were_asked_for() {
    let mut warnings = Vec::new();

    let mounts = nvidia(&["nvidia.com/gpu=0"]).mounts(&mut warnings).unwrap();

    let pairs: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let What::Bind { source, .. } = &mount.what else { panic!("all are binds") };
            (source.to_str().unwrap(), mount.target.to_str().unwrap())
        })
        .collect();
    for expected in [
        ("/host/lib64/libcuda.so.580.1", "/usr/lib64/libcuda.so.580.1"),
        ("/host/lib64/libcuda.so.580.1", "/usr/lib64/libcuda.so"),
        ("/host/lib64/libnvidia-allocator.so.580.1", "/usr/lib64/gbm/nvidia-drm_gbm.so"),
        ("/run/nvidia-persistenced/socket", "/run/nvidia-persistenced/socket"),
    ] {
        assert!(pairs.contains(&expected), "{expected:?} in {pairs:?}");
    }
    assert!(!pairs.iter().any(|(_, target)| target.ends_with("libcuda.so.1")), "that is for the loader's directory");
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn the_loader_finds_libraries_of_its_own_kind_in_the_folders_alone() {
    let libraries = nvidia(&["nvidia.com/gpu=0"]).libraries(Some(X86_64));

    let names: Vec<_> = libraries.iter().map(|library| library.name.as_str()).collect();
    let expected =
        ["libcuda.so", "libcuda.so.1", "libcuda.so.580.1", "libnvidia-allocator.so.1", "libnvidia-allocator.so.580.1"];
    assert_eq!(names, expected);
    assert!(libraries.iter().all(|library| library.source.starts_with("/host/lib64")));
}

#[test]
fn a_hook_of_another_vendor_is_named_in_a_warning() {
    assert!(nvidia(&["nvidia.com/gpu=0"]).warnings[0].contains("/usr/bin/vendor-hook"));
}

#[test]
fn a_link_to_anything_else_is_named_in_a_warning() {
    let spec = r#"{"kind": "v/c", "devices": [{"name": "x"}], "containerEdits": {"hooks": [{"hookName": "createContainer",
        "path": "/usr/bin/nvidia-ctk", "args": ["nvidia-ctk", "hook", "create-symlinks", "--link", "gone.so::/lib/a.so"]}]}}"#;
    let json = SpecFile { path: "/c.json".into(), directory: 0, spec: Spec::from_json(spec).unwrap() };
    let mut warnings = Vec::new();

    choose(&[json], &["v/c=x"]).unwrap().mounts(&mut warnings).unwrap();

    assert_eq!(warnings, ["the CDI specification's link /lib/a.so is not made: gone.so is no file of the device"]);
}

#[test]
fn a_name_of_a_library_that_is_a_path_is_not_used() {
    let mut injection = nvidia(&["nvidia.com/gpu=0"]);
    for source in injection.sources.values_mut() {
        source.soname = Some("../../etc/passwd".into());
    }

    let mounts = injection.mounts(&mut Vec::new()).unwrap();

    assert!(mounts.iter().all(|mount| !mount.target.to_string_lossy().contains("passwd")));
}

#[test]
fn a_specification_for_a_driver_that_is_gone_ends_the_run() {
    let mut injection = nvidia(&["nvidia.com/gpu=0"]);
    injection.sources.clear();

    let refused = injection.mounts(&mut Vec::new());

    let gone = CdiError::NoSource("/host/lib64/libcuda.so.580.1".into());
    assert_eq!(refused, Err(PlanError::Cdi(gone)));
}

#[test]
fn the_later_directory_wins_and_two_of_one_directory_are_refused() {
    let spec = |value: &str| format!("kind: v/c\ndevices: [{{name: x, containerEdits: {{env: [A={value}]}}}}]\n");
    let early = file("/etc/cdi/a.yaml", 0, &spec("early"));
    let late = file("/run/cdi/a.yaml", 1, &spec("late"));
    let twin = file("/run/cdi/b.yaml", 1, &spec("twin"));

    let chosen = choose(&[early.clone(), late.clone()], &["v/c=x"]).unwrap();
    let refused = choose(&[early, late, twin], &["v/c=x"]);

    assert_eq!(chosen.variables, [("A".into(), "late".into())]);
    assert!(matches!(refused, Err(CdiError::Conflict { .. })), "{refused:?}");
}

#[test]
fn an_unknown_device_is_refused_with_those_that_there_are() {
    let error = choose(&[file("/etc/cdi/nvidia.yaml", 0, NVIDIA)], &["nvidia.com/gpu=9"]).unwrap_err().to_string();
    let none = choose(&[], &["nvidia.com/gpu=9"]).unwrap_err().to_string();

    assert!(error.contains("nvidia.com/gpu=0, nvidia.com/gpu=all"), "{error}");
    assert!(none.contains("nvidia-ctk cdi generate"), "{none}");
    for name in ["/dev/nvidia0", "gpu=0", "nvidia.com/gpu", "nvidia.com/gpu=", "v/c=a/b"] {
        assert_eq!(choose(&[], &[name]), Err(CdiError::Name(name.into())));
    }
}
