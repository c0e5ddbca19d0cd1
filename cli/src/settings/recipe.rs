//! How a definition file is built, as asked for.

use super::image_file::Compression;
use super::{Bind, Environment, SettingsError, mount_spec};
use crate::args::RecipeFlags;
use siphon_image::squashfs::format::Compressor;
use std::ffi::OsStr;
use std::path::PathBuf;

/// Names of sections that may be chosen.
const CHOICES: [&str; 8] = ["all", "none", "setup", "post", "files", "environment", "test", "labels"];

/// By this variable `build` asks a run which mount points it is going to have: they are written to the file that it names, as
/// a JSON list of paths, and nothing is run.
pub const NOTE_MOUNT_POINTS: &str = "SIPHON_NOTE_MOUNT_POINTS";
/// What is said of encryption.
const ENCRYPTION: &str = "images are not encrypted; encrypt the file itself, such as with \"age\" or \"gpg\", or keep it on an \
                          encrypted file system";

/// How a definition file is built.
#[derive(Debug, Clone, Default)]
pub struct RecipeSettings {
    /// Only read it.
    pub check: bool,
    /// Values of `{{ NAME }}`, as typed.
    pub build_args: Vec<String>,
    /// A file of such values.
    pub build_arg_file: Option<PathBuf>,
    /// Let unused ones pass.
    pub may_be_unused: bool,
    /// Whether it is JSON.
    pub json: bool,
    /// Whether the sections run in a sandbox that is there.
    pub update: bool,
    /// For machines of which architecture the image is, if not of this one's.
    pub arch: Option<String>,
    /// Which of the architecture's variants.
    pub arch_variant: Option<String>,
    /// Which sections run.
    pub sections: Sections,
    /// Whether nothing is taken from an earlier build, nor kept for a later one.
    pub no_cache: bool,
    /// Whether a failed `%post` is gone on with.
    pub resume: bool,
    /// Options of the runs of `%post` and `%test`.
    pub run_options: Vec<String>,
    /// Whether `%test` may write.
    pub writable_tmpfs: bool,
    /// Whether a sandbox is opened up for its user.
    pub fix_perms: bool,
    /// Whether subordinate ids are used, where there are any.
    pub subordinate_ids: bool,
    /// Whether the working directories stay.
    pub no_cleanup: bool,
    /// Where it is built.
    pub tmpdir: Option<PathBuf>,
    /// What the options of mksquashfs come to.
    pub compression: Option<Compression>,
    /// What is asked for and is not done.
    pub warnings: Vec<String>,
}

/// Which sections run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sections {
    /// Those that were named; `all` among them stands for each.
    names: Vec<String>,
    test: bool,
}

impl Default for Sections {
    fn default() -> Self {
        Self { names: vec!["all".to_owned()], test: true }
    }
}

impl Sections {
    /// Whether the section `name` runs, or is put into the image.
    pub fn has(&self, name: &str) -> bool {
        let named = |name: &str| self.names.iter().any(|known| known == name);
        !named("none") && (named("all") || named(name))
    }

    /// Whether `%test` is run.
    pub fn runs_test(&self) -> bool {
        self.test && self.has("test")
    }
}

impl RecipeSettings {
    /// Reads the flags and the environment.
    ///
    /// # Errors
    /// [`SettingsError::Section`], [`SettingsError::MksquashfsArgs`]; [`SettingsError::Unsupported`] for an option that
    /// siphon knows and does not have.
    pub fn resolve(flags: &RecipeFlags, environment: &Environment) -> Result<Self, SettingsError> {
        let on = |flag: bool, key: &str| flag || environment.switch(&[key]);
        refuse(flags, environment)?;
        let mut warnings = Vec::new();
        let mut names: Vec<_> = flags.section.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
        if let (true, Some(list)) = (names.is_empty(), environment.text(&["SECTION"])) {
            names.extend(list.split(',').map(|name| name.trim().to_ascii_lowercase()));
        }
        if let Some(unknown) = names.iter().find(|name| !CHOICES.contains(&name.as_str())) {
            return Err(SettingsError::Section(unknown.clone()));
        }
        if names.is_empty() {
            names.push("all".to_owned());
        }
        let args = flags.mksquashfs_args.clone().or_else(|| environment.text(&["MKSQUASHFS_ARGS"]));
        let directory = flags.tmpdir.clone().or_else(|| environment.setting(&["TMPDIR"]).map(PathBuf::from));
        let binds: Vec<_> = flags.bind.iter().cloned().chain(environment.text(&["BIND", "BINDPATH"])).collect();
        let mut run_options: Vec<_> = binds.iter().flat_map(|spec| ["--bind".to_owned(), spec.clone()]).collect();
        let mounts: Vec<_> = flags.mount.iter().cloned().chain(environment.text(&["MOUNT"])).collect();
        // What is wrong with one is said before anything runs.
        binds.iter().try_for_each(|spec| Bind::parse_list(spec).map(drop))?;
        mounts.iter().try_for_each(|spec| mount_spec::parse(spec).map(drop))?;
        run_options.extend(mounts.into_iter().flat_map(|spec| ["--mount".to_owned(), spec]));
        let devices = [
            ("--nv", on(flags.nv, "NV")),
            ("--nvccli", on(flags.nvccli, "NVCCLI")),
            ("--rocm", on(flags.rocm, "ROCM")),
            ("--compat32", on(flags.compat32, "COMPAT32")),
        ];
        run_options.extend(devices.into_iter().filter(|(_, wanted)| *wanted).map(|(option, _)| option.to_owned()));
        Ok(Self {
            check: flags.check,
            build_args: flags.build_arg.clone(),
            build_arg_file: flags.build_arg_file.clone(),
            may_be_unused: flags.warn_unused_build_args,
            json: flags.json,
            update: on(flags.update, "UPDATE"),
            arch: flags.arch.clone().or_else(|| environment.text(&["BUILD_ARCH"])),
            arch_variant: flags.arch_variant.clone().or_else(|| environment.text(&["BUILD_ARCH_VARIANT"])),
            sections: Sections { names, test: !on(flags.notest, "NOTEST") },
            no_cache: on(flags.no_cache, "DISABLE_CACHE"),
            resume: flags.resume,
            run_options,
            writable_tmpfs: on(flags.writable_tmpfs, "WRITABLE_TMPFS"),
            fix_perms: on(flags.fix_perms, "FIXPERMS"),
            subordinate_ids: !on(flags.ignore_subuid, "IGNORE_SUBUID"),
            no_cleanup: flags.no_cleanup,
            tmpdir: directory,
            compression: args.map(|args| compression(&args, &mut warnings)).transpose()?.flatten(),
            warnings,
        })
    }
}

/// Says of what siphon does not have what to use instead.
fn refuse(flags: &RecipeFlags, environment: &Environment) -> Result<(), SettingsError> {
    let text = |flag: &Option<String>, key: &str| flag.is_some() || environment.setting(&[key]).is_some();
    let refused = [
        ("--encrypt", flags.encrypt || environment.switch(&["ENCRYPT"]), ENCRYPTION),
        ("--passphrase", flags.passphrase, ENCRYPTION),
        ("--pem-path", flags.pem_path.is_some(), ENCRYPTION),
        ("--data", flags.data, "a directory or a squashfs file is bound as data: -B data.sqfs:/data:image-src=/"),
        ("--remote", flags.remote, "images are built on this machine, without root"),
        (
            "--buildkit-host",
            text(&flags.buildkit_host, "BUILDKIT_HOST"),
            "build the image with buildctl or docker, and start from the archive that it saves: \"Bootstrap: oci-archive\"",
        ),
    ];
    match refused.into_iter().find(|(_, given, _)| *given) {
        Some((option, _, instead)) => Err(SettingsError::Unsupported { option: option.to_owned(), instead }),
        None => Ok(()),
    }
}

/// What `-comp` and `-Xcompression-level` come to. What only concerns how fast mksquashfs works means nothing here.
fn compression(args: &str, warnings: &mut Vec<String>) -> Result<Option<Compression>, SettingsError> {
    let refused = || SettingsError::MksquashfsArgs(args.to_owned());
    let (mut compressor, mut level, mut is_none) = (None, None, false);
    let mut words = args.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "-comp" => {
                compressor = Some(match words.next().ok_or_else(refused)? {
                    "gzip" => Compressor::Gzip,
                    "zstd" => Compressor::Zstd,
                    "xz" => Compressor::Xz,
                    "lz4" => Compressor::Lz4,
                    "lzo" => Compressor::Lzo,
                    _ => return Err(refused()),
                });
            }
            "-Xcompression-level" => {
                level = Some(words.next().and_then(|level| level.parse().ok()).ok_or_else(refused)?);
            }
            "-no-compression" | "-noD" => is_none = true,
            "-processors" | "-mem" | "-throttle" => drop(words.next()),
            "-no-progress" | "-quiet" | "-noappend" | "-all-root" => {}
            other => {
                warnings.push(format!("--mksquashfs-args: {other} has no effect: siphon packs without mksquashfs"))
            }
        }
    }
    if compressor.is_none() && level.is_none() && !is_none {
        return Ok(None);
    }
    let compressor = compressor.unwrap_or(Compressor::Gzip);
    let levels = match compressor {
        Compressor::Gzip => Some(1..=9),
        Compressor::Zstd => Some(1..=22),
        Compressor::Xz => Some(0..=9),
        _ => None,
    };
    if level.is_some_and(|level| !levels.is_some_and(|levels| levels.contains(&level))) {
        return Err(refused());
    }
    Ok(Some(Compression { compressor, level, is_none }))
}

impl Compression {
    /// As `--compression` understands it.
    pub fn as_flag(&self) -> String {
        let name = match self.compressor {
            _ if self.is_none => return "none".to_owned(),
            Compressor::Zstd => "zstd",
            Compressor::Xz => "xz",
            Compressor::Lz4 => "lz4",
            Compressor::Lzo => "lzo",
            _ => "gzip",
        };
        self.level.map_or_else(|| name.to_owned(), |level| format!("{name}:{level}"))
    }
}

/// Whether a variable of the caller's is one of singularity's own, which the runs of a build do not get.
pub fn is_own_variable(name: &OsStr) -> bool {
    const KEPT: [&str; 3] = ["DEBUG", "MESSAGELEVEL", "CACHEDIR"];
    let name = name.to_string_lossy();
    ["APPTAINER_", "SINGULARITY_"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| !KEPT.contains(&rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &RecipeFlags, pairs: &[(&str, &str)]) -> Result<RecipeSettings, SettingsError> {
        RecipeSettings::resolve(flags, &Environment::made_up(pairs))
    }

    #[test]
    fn sections_are_chosen_by_flag_or_variable() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], [bool; 3]);
        let cases: [Case<'_>; 6] = [
            (&[], &[], [true, true, true]),
            (&["post", "files"], &[], [true, false, false]),
            (&["none"], &[], [false, false, false]),
            (&[], &[("APPTAINER_SECTION", "test,setup")], [false, true, true]),
            (&[], &[("APPTAINER_NOTEST", "1")], [true, true, false]),
            (&["ALL"], &[], [true, true, true]),
        ];
        for (names, pairs, expected) in cases {
            let section = names.iter().map(|&name| name.to_owned()).collect();
            let found = resolve(&RecipeFlags { section, ..RecipeFlags::default() }, pairs).unwrap().sections;
            assert_eq!([found.has("post"), found.has("setup"), found.runs_test()], expected, "{names:?} {pairs:?}");
        }
        let section = vec!["pots".to_owned()];
        assert!(resolve(&RecipeFlags { section, ..RecipeFlags::default() }, &[]).is_err());
    }

    #[test]
    fn options_of_mksquashfs_that_mean_something_are_followed() {
        let flag = |args: &str| {
            let flags = RecipeFlags { mksquashfs_args: Some(args.to_owned()), ..RecipeFlags::default() };
            let settings = resolve(&flags, &[]).map_err(|error| error.to_string())?;
            Ok::<_, String>((settings.compression.map(|found| found.as_flag()), settings.warnings.len()))
        };

        assert_eq!(flag("-comp zstd -Xcompression-level 3"), Ok((Some("zstd:3".into()), 0)));
        assert_eq!(flag("-processors 4 -no-compression"), Ok((Some("none".into()), 0)));
        assert_eq!(flag("-processors 4"), Ok((None, 0)));
        assert_eq!(flag("-comp lz4 -b 1M"), Ok((Some("lz4".into()), 2)));
        for wrong in ["-comp", "-comp brotli", "-comp zstd -Xcompression-level 40", "-Xcompression-level x"] {
            assert!(flag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn runs_of_a_build_do_not_get_the_variables_of_the_build() {
        for (name, own) in [
            ("APPTAINER_BIND", true),
            ("SINGULARITY_SANDBOX", true),
            ("APPTAINERENV_X", false),
            ("APPTAINER_DEBUG", false),
            ("SIPHON_RUNTIME_DIR", false),
            ("http_proxy", false),
        ] {
            assert_eq!(is_own_variable(OsStr::new(name)), own, "{name}");
        }
    }
}
