//! What a run gets of a made-up driver.

use super::*;
use siphon_image::elf::{I386, X86_64};

fn candidate(name: &str, path: &str, kind: Option<ElfKind>) -> Candidate {
    Candidate { name: name.into(), path: path.into(), kind }
}

fn driver() -> Gpu {
    Gpu {
        own: Some(X86_64),
        candidates: vec![
            candidate("libcuda.so.1", "/lib32/libcuda.so.1", Some(I386)),
            candidate("libcuda.so.1", "/lib/text", None),
            candidate("libcuda.so.1", "/lib64/libcuda.so.1", Some(X86_64)),
            candidate("libcuda.so.1", "/other/libcuda.so.1", Some(X86_64)),
            candidate("libGL.so.1", "/lib64/libGL.so.1", Some(X86_64)),
            candidate("libGL.so.1", "/lib32/libGL.so.1", Some(I386)),
        ],
        programs: vec!["/opt/nv/nvidia-smi".into()],
        ..Gpu::default()
    }
}

fn asked() -> GpuSettings {
    GpuSettings { nv: true, ..GpuSettings::default() }
}

fn sources(libraries: &[Library]) -> Vec<&str> {
    libraries.iter().map(|library| library.source.to_str().unwrap()).collect()
}

#[test]
fn the_first_library_of_each_name_that_fits_is_taken() {
    assert_eq!(sources(&driver().libraries(X86_64)), ["/lib64/libcuda.so.1", "/lib64/libGL.so.1"]);
    assert_eq!(sources(&driver().libraries(I386)), ["/lib32/libcuda.so.1", "/lib32/libGL.so.1"]);
}

#[test]
fn what_the_image_has_itself_stays_out_unless_the_kernel_needs_the_hosts() {
    let mut gpu = driver();
    let replaceable = gpu.replaceable(&asked());

    gpu.leave_to_image(replaceable.clone());

    assert_eq!(replaceable, [Wanted { name: "libGL.so.1".into(), kind: X86_64 }]);
    assert_eq!(sources(&gpu.libraries(X86_64)), ["/lib64/libcuda.so.1"]);
    assert_eq!(sources(&gpu.libraries(I386)), ["/lib32/libcuda.so.1", "/lib32/libGL.so.1"]);
}

#[test]
fn thirty_two_bit_libraries_have_a_directory_of_their_own() {
    let settings = GpuSettings { compat32: true, ..asked() };

    let mounts = directories(&settings, &driver(), &mut Vec::new());

    let targets: Vec<_> = mounts.iter().map(|mount| mount.target.to_str().unwrap()).collect();
    assert_eq!(targets, [LIBRARIES, NARROW_LIBRARIES]);
    assert_eq!(library_path(&settings), "/.singularity.d/libs:/.singularity.d/libs32");
}

#[test]
fn what_a_host_lacks_is_said_for_each_vendor() {
    let both = GpuSettings { rocm: true, ..asked() };
    let cases = [
        (
            Gpu::default(),
            vec!["Could not find any nv files on this host!", "Could not find any rocm files on this host!"],
        ),
        (
            Gpu { candidates: Vec::new(), ..driver() },
            vec!["Could not find any nv libraries on this host!", "Could not find any rocm files on this host!"],
        ),
        (driver(), vec!["Could not find any rocm files on this host!"]),
    ];
    for (gpu, expected) in cases {
        let mut warnings = Vec::new();

        directories(&both, &gpu, &mut warnings);

        assert_eq!(warnings, expected);
    }
}

#[test]
fn a_node_under_another_name_is_not_had_from_the_hosts_dev() {
    let device =
        |source: &str, target: &str| Device { source: source.into(), target: target.into(), kind: SourceKind::File };
    let devices = vec![device("/dev/nvidia0", "/dev/nvidia0"), device("/dev/nvidia1", "/dev/nvidia0")];

    let warnings: Vec<_> = lost_devices(&Gpu { devices, ..Gpu::default() }, false).collect();

    assert_eq!(warnings, ["the device /dev/nvidia0 of the CDI specification keeps its name on the host, /dev/nvidia1"]);
}

#[test]
fn a_small_dev_holds_what_is_to_be_below_it() {
    let device = |target: &str| Device { source: "/dev/x".into(), target: target.into(), kind: SourceKind::File };
    let devices = vec![
        device("/dev/dri/y"),
        device("/dev/../etc/passwd"),
        device("/dev"),
        device("/run/x"),
        device("/dev/shm/x"),
        device("/dev/pts"),
    ];

    let warnings: Vec<_> = lost_devices(&Gpu { devices, ..Gpu::default() }, true).collect();

    let lost = |path| {
        format!("the device {path} of the CDI specification has no place in the container's own /dev and stays out")
    };
    assert_eq!(warnings, ["/dev/../etc/passwd", "/dev", "/run/x", "/dev/shm/x", "/dev/pts"].map(lost));
}

#[test]
fn a_value_survives_the_shells_evaluation() {
    assert_eq!(literal(r"a$b`c\d"), r"a\$b\`c\\d");
}
