//! The recipes that newcomers learn by, as they are: their bases are in a registry of the test, and what they fetch is
//! stood in for.

use crate::support::environment::TestEnvironment;
use crate::support::image::make_system;
use crate::support::registry::Registry;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// What makes their bases.
const OCI_MAKER: &str = include_str!("../support/oci_layout.py");
/// Stands in for what the recipes fetch and install: makes what they go on with, and says what it was asked for.
const STAND_IN: &str = r#"#!/bin/sh
echo "${0##*/} $*" >> /asked
last=; for last; do :; done
name=${last##*/}
case ${0##*/} in
    git) mkdir -p "${name%.git}" ;;
    fetch) : > "$name" ;;
    unpack) [ -f "$last" ] && mkdir -p "${name%.zip}" ;;
    apt) [ "$1" != install ] || mkdir -p /opt/conda/lib/python3.6/site-packages/mujoco_py /usr/local/lib/python3.5/dist-packages/mujoco_py ;;
esac
"#;

/// A registry with a system under the names of both bases, in which what the recipes call is stood in for.
fn serve_bases() -> Registry {
    let (root, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_system(root.path(), &["usr/local", "opt/conda/bin"]);
    let program = |name: &str, script: &str| {
        let path = root.path().join("bin").join(name);
        let _busybox_has_some = std::fs::remove_file(&path);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    ["apt", "apt-get", "pip", "git", "fetch", "unpack"].iter().for_each(|name| program(name, STAND_IN));
    program("bash", "#!/bin/sh\nexec /bin/sh \"$@\"\n");
    let made = Command::new("python3").args(["-c", OCI_MAKER]).args([root.path(), out.path()]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let registry = Registry::start();
    for name in ["pytorch/pytorch:1.0-cuda10.0-cudnn7-runtime", "tensorflow/tensorflow:latest-gpu-py3"] {
        let (layout, uri) =
            (format!("oci:{}/layout:made", out.path().display()), format!("docker://{}/{name}", registry.host()));
        let sent = Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &layout, &uri]).output().unwrap();
        assert!(sent.status.success(), "{sent:?}");
    }
    registry
}

#[test]
fn the_recipes_of_the_tutorial_are_built_and_run() {
    let environment = TestEnvironment::new();
    environment.write("mjkey.txt", "the key\n");
    let registry = serve_bases();
    let configuration = ["pytorch", "tensorflow"].map(|name| {
        let host = registry.host();
        format!("[[registry]]\nprefix = \"docker.io/{name}\"\nlocation = \"{host}/{name}\"\ninsecure = true\n")
    });
    let configuration = environment.write("registries.conf", &configuration.concat());
    let configuration = configuration.to_str().unwrap();
    let tutorial = [
        (
            "tools",
            include_str!("tutorial/tools.def"),
            "echo $SHELL; ls -d /dataset /tmp_log /final_log",
            "/bin/bash\n/dataset\n/final_log\n/tmp_log",
        ),
        (
            "pytorch",
            include_str!("tutorial/pytorch.def"),
            "cat $MUJOCO_PY_MJKEY_PATH; ls -d /Gym/gym /Gym/.mujoco/mujoco200; echo $SHELL",
            "the key\n/Gym/.mujoco/mujoco200\n/Gym/gym\n/bin/sh",
        ),
        (
            "tensorflow",
            include_str!("tutorial/tensorflow.def"),
            "cat $MUJOCO_PY_MJKEY_PATH; ls -d /usr/local/gym-miniworld; echo $SHELL",
            "the key\n/usr/local/gym-miniworld\n/bin/bash",
        ),
    ];

    for (name, text, line, expected) in tutorial {
        // Busybox's own programs cannot be stood in for: its shell runs them whatever lies in the PATH.
        environment.write("t.def", &text.replace("wget https", "fetch https").replace("unzip m", "unpack m"));
        let image = format!("{name}.sif");

        let build = environment.siphon(&["build", &image, "t.def"]);
        build.env("CONTAINERS_REGISTRIES_CONF", configuration).stdout();

        assert_eq!(environment.siphon(&["exec", &image, "sh", "-c", line]).stdout(), expected, "{name}");
        assert!(environment.siphon(&["exec", &image, "cat", "/asked"]).stdout().contains("install"), "{name}");
        if name != "tools" {
            assert_eq!(
                environment.siphon(&["run", &image, "-c", "echo from the runscript"]).stdout(),
                "from the runscript"
            );
        }
    }
}
