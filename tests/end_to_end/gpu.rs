use crate::support::driver::{Driver, LIBRARIES, VERSION};
use crate::support::environment::{Finished, Invocation, TestEnvironment, as_user_and_as_root};

const LIBRARY_NAMES: [(&str, &str); 3] =
    [("libcuda", "libcuda.so.1"), ("libnvidia-ml", "libnvidia-ml.so.1"), ("libGL", "libGL.so.1")];

fn driver(environment: &TestEnvironment) -> Driver {
    Driver::make(&environment.make_directory("driver"), &LIBRARY_NAMES)
}

/// A run with the made-up driver below `root`.
fn with(environment: &TestEnvironment, driver: &Driver, arguments: &[&str]) -> Invocation {
    environment.siphon(arguments).env("SIPHON_DRIVER_ROOT", driver.root.to_str().unwrap())
}

fn run(environment: &TestEnvironment, driver: &Driver, options: &[&str], line: &str) -> Finished {
    let arguments = [&["exec"], options, &[environment.images().sif(), "sh", "-c", line]].concat();
    with(environment, driver, &arguments).run()
}

fn printed(environment: &TestEnvironment, driver: &Driver, options: &[&str], line: &str) -> String {
    let finished = run(environment, driver, options, line);
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{finished}");
    finished.stdout.trim_end().to_owned()
}

#[test]
fn the_nvidia_driver_is_there_inside() {
    as_user_and_as_root(|environment| {
        let driver = driver(environment);
        let line =
            "ls /.singularity.d/libs; nvidia-smi; cat /usr/share/nvidia/nvoptix.bin; echo; echo $LD_LIBRARY_PATH";

        let output = printed(environment, &driver, &["--nv"], line);

        let expected = "libGL.so.1\nlibcuda.so.1\nlibnvidia-ml.so.1\nmade-up driver\noptix\n/.singularity.d/libs";
        assert_eq!(output, expected);
    });
}

#[test]
fn library_directories_of_the_user_come_before_and_after_the_hosts() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);

    let output =
        with(&environment, &driver, &["exec", "--nv", environment.images().sif(), "sh", "-c", "echo $LD_LIBRARY_PATH"])
            .env("APPTAINERENV_PREPEND_LD_LIBRARY_PATH", "/first")
            .env("SINGULARITYENV_APPEND_LD_LIBRARY_PATH", "/last")
            .stdout();

    assert_eq!(output, "/first:/.singularity.d/libs:/last");
}

#[test]
fn libraries_are_those_for_the_hosts_own_programs() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);
    let line = "cmp /.singularity.d/libs/libcuda.so.1 \"$0/usr/lib/driver/libcuda.so.1\" && \
                cmp /.singularity.d/libs32/libcuda.so.1 \"$0/usr/lib/narrow/libcuda.so.1\" && echo $LD_LIBRARY_PATH";
    let root = driver.root.to_str().unwrap();
    let arguments = ["exec", "--nv", "--compat32", environment.images().sif(), "sh", "-c", line, root];

    let output = with(&environment, &driver, &arguments).stdout();

    assert_eq!(output, "/.singularity.d/libs:/.singularity.d/libs32");
}

#[test]
fn a_library_of_the_image_is_hidden_by_none_of_the_host_but_the_drivers_own() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);
    let sandbox = environment.work().join("sandbox");
    let sandbox = sandbox.to_str().unwrap();
    environment.siphon(&["build", "--sandbox", sandbox, environment.images().sif()]).stdout();
    let install =
        "mkdir -p /usr/lib && for name in libGL libcuda; do head -c 64 /bin/busybox >/usr/lib/$name.so.1; done";
    environment.siphon(&["exec", "--writable", sandbox, "sh", "-c", install]).stdout();

    for options in [&["exec", "--nv"][..], &["exec", "--nv", "--writable"]] {
        let arguments = [options, &[sandbox, "ls", "/.singularity.d/libs"]].concat();

        let output = with(&environment, &driver, &arguments).stdout();

        assert_eq!(output, "libcuda.so.1\nlibnvidia-ml.so.1", "{options:?}");
    }
}

#[test]
fn mount_points_of_the_driver_are_made_in_a_sandbox() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);
    let sandbox = environment.work().join("sandbox");
    let sandbox = sandbox.to_str().unwrap();
    environment.siphon(&["build", "--sandbox", sandbox, environment.images().sif()]).stdout();

    let finished = with(&environment, &driver, &["exec", "--nv", "--writable", sandbox, "nvidia-smi"]).run();

    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("made-up driver\n", ""), "{finished}");
    assert!(environment.work().join("sandbox/usr/bin/nvidia-smi").exists());
}

#[test]
fn a_host_without_a_driver_is_a_warning() {
    let environment = TestEnvironment::new();
    let nothing = Driver { root: environment.make_directory("nothing") };

    let finished = run(&environment, &nothing, &["--nv", "--rocm", "--nvccli"], "echo done");

    assert_eq!((finished.code, finished.stdout.as_str()), (0, "done\n"), "{finished}");
    for expected in [
        "WARNING: Could not find any nv files on this host!",
        "WARNING: Could not find any rocm files on this host!",
        "WARNING: --nvccli is done as --nv",
    ] {
        assert!(finished.stderr.contains(expected), "{finished}");
    }
}

#[test]
fn rocm_has_a_list_of_its_own() {
    let environment = TestEnvironment::new();
    let names = [("libcuda", "libcuda.so.1"), ("libdrm_amdgpu", "libdrm_amdgpu.so.1")];
    let driver = Driver::make(&environment.make_directory("driver"), &names);
    driver.program("rocminfo", "#!/bin/sh\necho made-up rocm\n");

    let output = printed(&environment, &driver, &["--rocm"], "ls /.singularity.d/libs; rocminfo");

    assert_eq!(output, "libdrm_amdgpu.so.1\nmade-up rocm");
}

/// A specification as NVIDIA's toolkit writes it for the made-up driver.
fn specification(environment: &TestEnvironment, driver: &Driver) -> String {
    let directory = environment.make_directory("cdi");
    let mounts = LIBRARY_NAMES.map(|(stem, _)| {
        let (source, name) = (driver.library(stem), format!("{stem}.so.{VERSION}"));
        format!(
            "  - {{hostPath: {}, containerPath: /{LIBRARIES}/{name}, options: [ro, nosuid, nodev, bind]}}\n",
            source.display()
        )
    });
    let hook = |arguments: &str| {
        format!("  - {{hookName: createContainer, path: /usr/bin/nvidia-ctk, args: [nvidia-ctk, hook, {arguments}]}}\n")
    };
    let hooks = [
        hook(&format!("create-symlinks, --link, \"libcuda.so.1::/{LIBRARIES}/libcuda.so\"")),
        hook("enable-cuda-compat, --host-driver-version=580.65.06"),
        hook(&format!("update-ldcache, --folder, /{LIBRARIES}")),
        hook("tomorrows-hook"),
    ];
    let text = format!(
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits:\n    deviceNodes: \
         [{{path: /dev/null}}]\ncontainerEdits:\n  env: [\"NVIDIA_VISIBLE_DEVICES=void\", 'PRICE=$5']\n  mounts:\n{}  hooks:\n{}",
        mounts.concat(),
        hooks.concat()
    );
    std::fs::write(directory.join("nvidia.yaml"), text).unwrap();
    directory.to_str().unwrap().to_owned()
}

#[test]
fn a_cdi_device_brings_files_variables_and_what_its_hooks_would_have_done() {
    as_user_and_as_root(|environment| {
        let driver = driver(environment);
        let directory = specification(environment, &driver);
        let line = format!(
            "cmp /{LIBRARIES}/libcuda.so /{LIBRARIES}/libcuda.so.{VERSION} && \
             for directory in /{LIBRARIES} /.singularity.d/libs; do echo $(ls $directory); done && \
             echo $NVIDIA_VISIBLE_DEVICES $PRICE $LD_LIBRARY_PATH"
        );

        let options = ["--cdi-dirs", &directory, "--device", "nvidia.com/gpu=all"];
        let finished = run(environment, &driver, &options, &line);

        let files = format!("libGL.so.{VERSION} libcuda.so libcuda.so.{VERSION} libnvidia-ml.so.{VERSION}");
        let names = format!(
            "libGL.so.1 libGL.so.{VERSION} libcuda.so libcuda.so.1 libcuda.so.{VERSION} libnvidia-ml.so.1 \
             libnvidia-ml.so.{VERSION}"
        );
        assert_eq!(finished.stdout, format!("{files}\n{names}\nvoid $5 /.singularity.d/libs\n"), "{finished}");
        let unknown = "hook is not run: /usr/bin/nvidia-ctk (nvidia-ctk hook tomorrows-hook)";
        assert!(finished.stderr.contains(unknown), "{finished}");
    });
}

#[test]
fn newer_cuda_libraries_of_the_image_come_first_where_a_device_allows_it() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);
    let directory = specification(&environment, &driver);
    let sandbox = environment.work().join("sandbox");
    let sandbox = sandbox.to_str().unwrap();
    environment.siphon(&["build", "--sandbox", sandbox, environment.images().sif()]).stdout();
    let options = ["exec", "--writable", "--cdi-dirs", &directory, "--device", "nvidia.com/gpu=all"];

    for (version, expected) in
        [("570.1", "/.singularity.d/libs"), ("590.44.01", "/usr/local/cuda/compat:/.singularity.d/libs")]
    {
        let line = format!("mkdir -p /usr/local/cuda/compat && touch /usr/local/cuda/compat/libcuda.so.{version}");
        environment.siphon(&["exec", "--writable", sandbox, "sh", "-c", &line]).stdout();

        let output =
            with(&environment, &driver, &[&options[..], &[sandbox, "sh", "-c", "echo $LD_LIBRARY_PATH"]].concat())
                .stdout();

        assert_eq!(output, expected, "{version}");
    }
}

#[test]
fn a_device_and_the_driver_go_together() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);
    let directory = specification(&environment, &driver);
    let options = ["--nv", "--cdi-dirs", &directory, "--device", "nvidia.com/gpu=all", "--env", "PRICE=mine"];

    let finished = run(&environment, &driver, &options, "nvidia-smi; ls /.singularity.d/libs/libcuda.so; echo $PRICE");

    assert_eq!(finished.stdout, "made-up driver\n/.singularity.d/libs/libcuda.so\nmine\n", "{finished}");
}

#[test]
fn a_device_that_nobody_describes_ends_the_run() {
    let environment = TestEnvironment::new();
    let directory = environment.make_directory("cdi");

    let finished = environment
        .siphon(&[
            "exec",
            "--cdi-dirs",
            directory.to_str().unwrap(),
            "--device",
            "nvidia.com/gpu=0",
            environment.images().sif(),
            "true",
        ])
        .run();

    assert_eq!(finished.code, 255);
    assert!(finished.stderr.contains("FATAL:") && finished.stderr.contains("nvidia-ctk cdi generate"), "{finished}");
}

#[test]
fn a_contained_run_has_the_devices_that_were_asked_for_under_their_names() {
    as_user_and_as_root(|environment| {
        let directory = environment.make_directory("cdi");
        let text = "cdiVersion: 0.5.0\nkind: vendor.org/class\ndevices:\n- name: one\n  containerEdits:\n    deviceNodes: \
            [{path: /dev/made/up0, hostPath: /dev/zero}, {path: /dev/null}]\n";
        std::fs::write(directory.join("vendor.yaml"), text).unwrap();
        let options = ["--cdi-dirs", directory.to_str().unwrap(), "--device", "vendor.org/class=one"];
        let line =
            "head -c 4 /dev/made/up0 | od -An -tx1; ls /dev/made; [ -c /dev/null ] && echo > /dev/null && echo written";
        let arguments = |contain: &'static [&'static str]| {
            [&["exec"], contain, &options[..], &[environment.images().sif(), "sh", "-c", line]].concat()
        };

        let contained = environment.siphon(&arguments(&["--contain"])).run();
        let with_all = environment.siphon(&arguments(&[])).run();

        assert_eq!(contained.stdout, " 00 00 00 00\nup0\nwritten\n", "{contained}");
        assert_eq!(contained.stderr, "", "{contained}");
        assert!(with_all.stderr.contains("keeps its name on the host, /dev/zero"), "{with_all}");
    });
}

#[test]
fn a_device_is_not_made_in_a_directory_of_the_host() {
    as_user_and_as_root(|environment| {
        let directory = environment.make_directory("cdi");
        let devices = environment.make_directory("devices");
        let text = format!(
            "cdiVersion: 0.5.0\nkind: vendor.org/class\ndevices:\n- name: one\n  containerEdits:\n    deviceNodes: \
             [{{path: /dev/made, hostPath: {}}}, {{path: /dev/made/up/null, hostPath: /dev/null}}]\n",
            devices.display()
        );
        std::fs::write(directory.join("vendor.yaml"), text).unwrap();
        let options = ["--contain", "--cdi-dirs", directory.to_str().unwrap(), "--device", "vendor.org/class=one"];

        let finished =
            environment.siphon(&[&["exec"], &options[..], &[environment.images().sif(), "true"]].concat()).run();

        assert_eq!(finished.code, 255, "{finished}");
        assert!(finished.stderr.contains("is a directory of the host, which has no such device"), "{finished}");
        assert_eq!(std::fs::read_dir(&devices).unwrap().count(), 0);
    });
}

#[test]
fn runs_in_an_instance_find_its_driver() {
    let environment = TestEnvironment::new();
    let driver = driver(&environment);
    let started = with(&environment, &driver, &["instance", "start", "--nv", environment.images().sif(), "gpu"]).run();
    assert_eq!(started.code, 0, "{started}");
    let line = "nvidia-smi; ls /.singularity.d/libs/libcuda.so.1; echo $LD_LIBRARY_PATH";

    let output = environment.siphon(&["exec", "instance://gpu", "sh", "-c", line]).stdout();

    assert_eq!(output, "made-up driver\n/.singularity.d/libs/libcuda.so.1\n/.singularity.d/libs");
    environment.siphon(&["instance", "stop", "gpu"]).run();
}
