//! Which files of the host make up its GPU driver.

use std::path::PathBuf;

/// Library names of the NVIDIA driver, one prefix a line, as in singularity's nvliblist.conf.
const NVIDIA_LIBRARIES: &str = include_str!("gpu/nvidia-libraries.txt");
/// Programs of the NVIDIA driver.
pub const NVIDIA_BINARIES: [&str; 5] =
    ["nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
/// Data files and sockets of the NVIDIA driver.
pub const NVIDIA_FILES: [&str; 8] = [
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.json",
    "/usr/share/vulkan/icd.d/nvidia_layers.json",
    "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
    "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "/usr/share/nvidia/nvoptix.bin",
    "/var/run/nvidia-persistenced/socket",
];

/// How `ldconfig -p` marks libraries of this machine's kind.
#[cfg(target_arch = "x86_64")]
const MACHINE: Option<&str> = Some("x86-64");
/// How `ldconfig -p` marks libraries of this machine's kind.
#[cfg(target_arch = "aarch64")]
const MACHINE: Option<&str> = Some("AArch64");
/// How `ldconfig -p` marks libraries of this machine's kind: not known, so all are taken.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINE: Option<&str> = None;

/// The names that belong to the NVIDIA driver.
pub fn nvidia_names() -> impl Iterator<Item = &'static str> + Clone {
    NVIDIA_LIBRARIES.lines().filter(|line| !line.is_empty())
}

/// The libraries called `NAME.so*` in the output of `ldconfig -p`, the first of each file name, for this machine.
///
/// ```text
///     libcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1
/// ```
pub fn libraries(ldconfig: &str, names: impl Iterator<Item = &'static str> + Clone) -> Vec<PathBuf> {
    let mut found: Vec<(&str, PathBuf)> = Vec::new();
    for line in ldconfig.lines() {
        let Some((left, path)) = line.trim().split_once(" => ") else { continue };
        let Some((file, marks)) = left.split_once(' ') else { continue };
        let ours = MACHINE.is_none_or(|machine| marks.contains(machine));
        let wanted = file.split_once(".so").is_some_and(|(stem, _)| names.clone().any(|name| name == stem));
        if ours && wanted && !found.iter().any(|(known, _)| *known == file) {
            found.push((file, PathBuf::from(path)));
        }
    }
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn only_the_drivers_libraries_of_this_machine_are_taken() {
        let ldconfig = "3 libs found in cache `/etc/ld.so.cache'\n\
            \tlibcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1\n\
            \tlibcuda.so.1 (libc6) => /lib/i386-linux-gnu/libcuda.so.1\n\
            \tlibcuda.so (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so\n\
            \tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcudart.so.12\n\
            \tlibc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6\n";

        let found = libraries(ldconfig, nvidia_names());

        let expected = ["/lib/x86_64-linux-gnu/libcuda.so.1", "/lib/x86_64-linux-gnu/libcuda.so"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
