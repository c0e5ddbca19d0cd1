//! Options of builds from recipes, each run for real.

use super::recipes::recipe;
use crate::support::driver::Driver;
use crate::support::environment::{TestEnvironment, as_user_and_as_root};

/// Where the compressor's number is in the superblock of a squashfs, and two of the numbers.
const COMPRESSOR: usize = 20;
const GZIP: u8 = 1;
const LZ4: u8 = 5;

#[test]
fn the_nvidia_driver_is_there_in_sections_and_not_in_the_image() {
    as_user_and_as_root(|environment| {
        let driver = Driver::make(&environment.make_directory("driver"), &[("libcuda", "libcuda.so.1")]);
        let root = driver.root.to_str().unwrap();
        recipe(environment, "%post\n nvidia-smi > /said; ls /.singularity.d/libs >> /said\n%test\n nvidia-smi\n");

        for (options, variable) in [(&["--nv"][..], "X"), (&["--nvccli"], "X"), (&[], "APPTAINER_NV")] {
            let words = [&["build", "--no-cache", "--force"], options, &["out.sif", "r.def"]].concat();
            let built = environment.siphon(&words).env("SIPHON_DRIVER_ROOT", root).env(variable, "1").run();

            assert_eq!(built.code, 0, "{built}");
            assert_eq!(built.stderr.contains("--nvccli is done as --nv"), options == ["--nvccli"], "{built}");
            let said = environment.siphon(&["exec", "out.sif", "cat", "/said"]).stdout();
            assert_eq!(said, "made-up driver\nlibcuda.so.1", "{options:?}");
            let files = environment.siphon(&["ls", "-R", "out.sif"]).stdout();
            assert!(!files.contains("nvidia") && !files.contains("libcuda"), "{files}");
        }
        let without = environment.siphon(&["build", "--no-cache", "--force", "out.sif", "r.def"]).run();
        assert_eq!(without.code, 255, "{without}");
    });
}

#[test]
fn the_rocm_libraries_are_there_in_sections() {
    let environment = TestEnvironment::new();
    let driver = Driver::make(&environment.make_directory("driver"), &[("libdrm_amdgpu", "libdrm_amdgpu.so.1")]);
    driver.program("rocminfo", "#!/bin/sh\necho made-up rocm\n");
    recipe(&environment, "%post\n rocminfo > /said; ls /.singularity.d/libs >> /said\n");

    let build = environment.siphon(&["build", "--rocm", "out.sif", "r.def"]);
    build.env("SIPHON_DRIVER_ROOT", driver.root.to_str().unwrap()).stdout();

    let said = environment.siphon(&["exec", "out.sif", "cat", "/said"]).stdout();
    assert_eq!(said, "made-up rocm\nlibdrm_amdgpu.so.1");
    assert!(!environment.siphon(&["ls", "-R", "out.sif"]).stdout().contains("rocminfo"));
}

#[test]
fn mounts_are_there_in_sections_and_not_in_the_image() {
    let environment = TestEnvironment::new();
    let shared = environment.make_directory("shared");
    environment.write("shared/seen", "from the host\n");
    recipe(&environment, "%post\n cat /a/seen /b/c/seen > /copied; ! touch /b/c/new\n%test\n test -f /a/seen\n");

    let (bind, mount) =
        (format!("{}:/a", shared.display()), format!("type=bind,source={},destination=/b/c,ro", shared.display()));
    environment.siphon(&["build", "-B", &bind, "--mount", &mount, "out.sif", "r.def"]).stdout();

    assert_eq!(environment.siphon(&["exec", "out.sif", "cat", "/copied"]).stdout(), "from the host\nfrom the host");
    let list = environment.siphon(&["ls", "out.sif"]).stdout();
    assert!(!list.lines().any(|name| name.contains("/a") && name.len() < 4 || name.contains("/b/")), "{list}");
}

#[test]
fn everything_in_a_sandbox_can_be_made_its_users() {
    let environment = TestEnvironment::new();
    recipe(
        &environment,
        "%post\n mkdir -p /closed/deep; echo x > /closed/deep/file; chmod 0 /closed/deep/file /closed/deep /closed\n",
    );

    environment.siphon(&["build", "--sandbox", "--fix-perms", "box", "r.def"]).stdout();
    environment.siphon(&["build", "--sandbox", "closed", "r.def"]).stdout();

    assert_eq!(environment.shell("cat box/closed/deep/file").stdout(), "x");
    environment.shell("chmod -R u+rwX closed").stdout();
}

#[test]
fn the_image_is_compressed_as_the_options_of_mksquashfs_say() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n echo x > /x\n");
    let compressor = |words: &[&str], variable: &str| {
        let words = [&["build", "--force"], words, &["out.sqfs", "r.def"]].concat();
        let built = environment.siphon(&words).env("APPTAINER_MKSQUASHFS_ARGS", variable).run();
        assert_eq!(built.code, 0, "{built}");
        (std::fs::read(environment.work().join("out.sqfs")).unwrap()[COMPRESSOR], built.stderr)
    };

    let (gzip, _) = compressor(&["--mksquashfs-args", "-comp gzip -Xcompression-level 1"], "");
    let (lz4, _) = compressor(&[], "-comp lz4 -processors 1");
    let (_, warned) = compressor(&["--mksquashfs-args", "-b 1M -comp lz4"], "");

    assert_eq!((gzip, lz4), (GZIP, LZ4));
    assert!(warned.contains("WARNING: --mksquashfs-args: -b has no effect"), "{warned}");
    assert_eq!(environment.siphon(&["exec", "out.sqfs", "cat", "/x"]).stdout(), "x");
}

#[test]
fn what_siphon_does_not_have_is_refused_with_what_to_use_instead() {
    let environment = TestEnvironment::new();
    recipe(&environment, "%post\n touch /ran\n");
    for (words, message) in [
        (&["--encrypt"][..], "--encrypt is not supported; images are not encrypted; encrypt the file itself"),
        (&["--passphrase"], "--passphrase is not supported; images are not encrypted"),
        (&["--pem-path", "key.pem"], "--pem-path is not supported; images are not encrypted"),
        (&["--data"], "--data is not supported; a directory or a squashfs file is bound as data"),
        (&["--remote"], "--remote is not supported; images are built on this machine"),
        (&["--buildkit-host", "unix:///x"], "--buildkit-host is not supported; build the image with buildctl"),
        (&["--arch", "pdp11"], "the architecture pdp11 is not known"),
    ] {
        let words = [&["build"], words, &["out.sif", "r.def"]].concat();

        let refused = environment.siphon(&words).run();

        assert_eq!(refused.code, 255, "{refused}");
        assert!(refused.stderr.contains(message), "{refused}");
        assert!(!environment.work().join("out.sif").exists());
    }
    let encrypted = environment.siphon(&["build", "out.sif", "r.def"]).env("APPTAINER_ENCRYPT", "1").run();
    assert!(encrypted.code == 255 && encrypted.stderr.contains("--encrypt is not supported"), "{encrypted}");
    environment.siphon(&["build", "--userns", "--ignore-userns", "out.sif", "r.def"]).stdout();
}
