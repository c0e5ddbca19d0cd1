//! What belongs to the driver of each vendor: names of libraries, programs, files and device nodes.

/// A vendor whose driver can be brought into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// `--nv`.
    Nvidia,
    /// `--rocm`.
    Amd,
}

/// As in singularity's nvliblist.conf, one name a line.
const NVIDIA_LIBRARIES: &str = include_str!("nvidia-libraries.txt");
/// As in singularity's rocmliblist.conf.
const AMD_LIBRARIES: &str = include_str!("rocm-libraries.txt");
/// Those of NVIDIA's names that are not part of one version of the driver: loaders that any vendor's library can stand
/// behind, which distributions have too.
const NEUTRAL: [&str; 9] =
    ["libEGL", "libGLdispatch", "libGLESv1_CM", "libGLESv2", "libGL", "libGLX", "libglx", "libOpenCL", "libOpenGL"];

impl Vendor {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvidia => "nv",
            Self::Amd => "rocm",
        }
    }

    /// Whether a library file is one of the driver's: its name up to `.so` is in the list.
    pub fn lists(self, file: &str) -> bool {
        stem(file).is_some_and(|stem| self.libraries().any(|name| name == stem))
    }

    /// The names of its libraries, up to `.so`.
    pub fn libraries(self) -> impl Iterator<Item = &'static str> {
        match self {
            Self::Nvidia => NVIDIA_LIBRARIES.lines(),
            Self::Amd => AMD_LIBRARIES.lines(),
        }
    }

    /// Whether it has to be of the version that runs in the host's kernel, so that one of the image is of no use. Of
    /// NVIDIA's driver most are; the kernel's side of AMD's serves user spaces of any version.
    pub fn owns(self, file: &str) -> bool {
        self == Self::Nvidia && self.lists(file) && stem(file).is_some_and(|stem| !NEUTRAL.contains(&stem))
    }

    /// Whether a library of this name shows that the driver is there. Hosts without NVIDIA's have vendor-neutral ones.
    pub fn is_shown_by(self, file: &str) -> bool {
        match self {
            Self::Nvidia => self.owns(file),
            Self::Amd => self.lists(file),
        }
    }

    /// Programs, found through PATH.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Nvidia => &[
                "nvidia-smi",
                "nvidia-debugdump",
                "nvidia-persistenced",
                "nvidia-cuda-mps-control",
                "nvidia-cuda-mps-server",
            ],
            Self::Amd => &["rocm-smi", "rocminfo"],
        }
    }

    /// Data files and sockets, at the same place inside.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Self::Nvidia => &[
                "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
                "/usr/share/vulkan/icd.d/nvidia_icd.json",
                "/usr/share/vulkan/icd.d/nvidia_layers.json",
                "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
                "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
                "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
                "/usr/share/nvidia/nvoptix.bin",
                "/var/run/nvidia-persistenced/socket",
            ],
            Self::Amd => &[],
        }
    }

    /// Device nodes and directories of them: a name, or the beginning of names where it ends with `*`.
    pub fn devices(self) -> &'static [&'static str] {
        match self {
            // Among them nvidiactl, nvidia-uvm, nvidia-modeset, and nvidia-caps, a directory.
            Self::Nvidia => &["/dev/nvidia*"],
            Self::Amd => &["/dev/kfd", "/dev/dri"],
        }
    }
}

/// `libcuda` of `libcuda.so`, `libcuda.so.1` and `libcuda.so.580.65.06`.
fn stem(file: &str) -> Option<&str> {
    let (stem, version) = file.split_once(".so")?;
    (version.is_empty() || version.starts_with('.')).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_belongs_to_the_driver_by_its_name_up_to_so() {
        for (file, listed, owned) in [
            ("libcuda.so.1", true, true),
            ("libcuda.so", true, true),
            ("libnvidia-ml.so.580.65.06", true, true),
            ("libGL.so.1", true, false),
            ("libOpenCL.so.1", true, false),
            ("libcudart.so.12", false, false),
            ("libcuda.sock", false, false),
            ("libc.so.6", false, false),
        ] {
            assert_eq!((Vendor::Nvidia.lists(file), Vendor::Nvidia.owns(file)), (listed, owned), "{file}");
        }
    }

    #[test]
    fn nothing_of_rocm_is_bound_to_the_hosts_version() {
        assert!(Vendor::Amd.lists("libdrm_amdgpu.so.1"));
        assert!(!Vendor::Amd.owns("libdrm_amdgpu.so.1"));
    }
}
