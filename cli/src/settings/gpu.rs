//! Which of the host's GPUs a run is to see, and where their drivers lie.

use super::Environment;
use crate::args::GpuFlags;
use std::path::PathBuf;

/// Where CDI specifications lie, the later ones before the earlier ones where both describe a device.
const CDI_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// GPUs, as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuSettings {
    /// The NVIDIA driver.
    pub nv: bool,
    /// AMD's ROCm.
    pub rocm: bool,
    /// Libraries for 32-bit programs too.
    pub compat32: bool,
    /// Intel Gaudi accelerators.
    pub intel_hpu: bool,
    /// CDI devices by full name.
    pub devices: Vec<String>,
    /// Where CDI specifications are looked for.
    pub cdi_directories: Vec<PathBuf>,
    /// The directory that the driver is installed below: `*_DRIVER_ROOT`, `/` unless set.
    pub driver_root: PathBuf,
}

impl Default for GpuSettings {
    fn default() -> Self {
        Self {
            nv: false,
            rocm: false,
            compat32: false,
            intel_hpu: false,
            devices: Vec::new(),
            cdi_directories: CDI_DIRECTORIES.map(PathBuf::from).to_vec(),
            driver_root: PathBuf::from("/"),
        }
    }
}

impl GpuSettings {
    /// Reads flags and environment. What was asked for and cannot be done as it is named goes into `warnings`.
    pub fn resolve(flags: GpuFlags, environment: &Environment, warnings: &mut Vec<String>) -> Self {
        let on = |flag: bool, keys: &[&str]| flag || environment.switch(keys);
        let nvccli = on(flags.nvccli, &["NVCCLI"]);
        let no_nv = on(flags.no_nv, &["NV_OFF", "NO_NV"]);
        let no_rocm = on(flags.no_rocm, &["ROCM_OFF", "NO_ROCM"]);
        // The word on the command line is the last one.
        let nv = flags.nv || flags.nvccli || (!no_nv && (nvccli || environment.switch(&["NV"])));
        let rocm = flags.rocm || (!no_rocm && environment.switch(&["ROCM"]));
        if nvccli && nv {
            let all = environment.get("NVIDIA_VISIBLE_DEVICES").is_none_or(|devices| devices == "all");
            let chosen = if all { "" } else { "; NVIDIA_VISIBLE_DEVICES has no effect, --device and --contain choose" };
            warnings.push(format!("--nvccli is done as --nv, without nvidia-container-cli{chosen}"));
        }
        let capabilities = environment.get("NVIDIA_DRIVER_CAPABILITIES").map(|list| list.to_string_lossy());
        let capable = capabilities.is_some_and(|list| list.split(',').any(|word| word == "compat32"));
        let compat32 = on(flags.compat32, &["COMPAT32"]);
        if compat32 && !nv && !rocm {
            warnings.push("Ignoring --compat32, it requires a GPU option such as --nv or --rocm".into());
        }
        let default = Self::default();
        Self {
            nv,
            rocm,
            compat32: (compat32 || capable) && (nv || rocm),
            intel_hpu: on(flags.intel_hpu, &["INTEL_HPU"]),
            devices: flags.devices,
            cdi_directories: if flags.cdi_dirs.is_empty() { default.cdi_directories } else { flags.cdi_dirs },
            driver_root: environment.setting(&["DRIVER_ROOT"]).map_or(default.driver_root, PathBuf::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: GpuFlags, pairs: &[(&str, &str)]) -> (GpuSettings, Vec<String>) {
        let environment = Environment::made_up(pairs);
        let mut warnings = Vec::new();
        (GpuSettings::resolve(flags, &environment, &mut warnings), warnings)
    }

    #[test]
    fn the_environment_asks_for_drivers_and_takes_them_back() {
        let cases = [
            (["APPTAINER_NV=1", "SINGULARITY_ROCM=true"], true, true),
            (["APPTAINER_NV=1", "APPTAINER_NO_NV=1"], false, false),
            (["APPTAINER_ROCM=1", "APPTAINER_ROCM_OFF=1"], false, false),
            (["APPTAINER_NVCCLI=1", "APPTAINER_ROCM="], true, false),
        ];
        for (variables, nv, rocm) in cases {
            let pairs = variables.map(|variable| variable.split_once('=').unwrap());
            let (settings, _) = resolve(GpuFlags::default(), &pairs);

            assert_eq!((settings.nv, settings.rocm), (nv, rocm), "{variables:?}");
        }
    }

    #[test]
    fn a_flag_wins_over_a_variable_that_says_no() {
        let flags = GpuFlags { nv: true, ..GpuFlags::default() };

        assert!(resolve(flags, &[("APPTAINER_NO_NV", "1")]).0.nv);
    }

    #[test]
    fn thirty_two_bits_need_a_driver() {
        let flags = GpuFlags { compat32: true, ..GpuFlags::default() };

        let (settings, warnings) = resolve(flags, &[]);

        assert!(!settings.compat32);
        assert_eq!(warnings, ["Ignoring --compat32, it requires a GPU option such as --nv or --rocm"]);
    }

    #[test]
    fn the_drivers_own_variable_asks_for_thirty_two_bits_too() {
        let flags = GpuFlags { nv: true, ..GpuFlags::default() };

        assert!(resolve(flags, &[("NVIDIA_DRIVER_CAPABILITIES", "compute,compat32")]).0.compat32);
    }

    #[test]
    fn what_is_done_without_nvidias_program_is_said() {
        let flags = GpuFlags { nvccli: true, ..GpuFlags::default() };

        let (settings, warnings) = resolve(flags, &[("NVIDIA_VISIBLE_DEVICES", "0")]);

        assert!(settings.nv);
        assert!(warnings[0].contains("done as --nv") && warnings[0].contains("NVIDIA_VISIBLE_DEVICES"), "{warnings:?}");
    }
}
