//! What the hooks of NVIDIA's container toolkit would have done, by their arguments.

use super::Compatibility;
use super::spec::Hook;
use std::path::PathBuf;

/// The toolkit's programs: `nvidia-ctk hook NAME`, and since 1.15 `nvidia-cdi-hook NAME`.
const PROGRAMS: [&str; 2] = ["nvidia-ctk", "nvidia-cdi-hook"];
/// Where the images of CUDA have libraries for newer drivers.
const COMPATIBILITY_DIRECTORY: &str = "/usr/local/cuda/compat";

/// A change of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// A link.
    Link {
        /// What it names, as seen from its directory.
        names: PathBuf,
        /// Where it lies.
        at: PathBuf,
    },
    /// The loader is to find the libraries in this directory.
    Folder(PathBuf),
    /// Newer CUDA libraries of the image are to be used.
    Compatibility(Compatibility),
}

/// What comes of a hook.
///
/// # Errors
/// A warning that names the hook, if it is not known.
pub(super) fn effect(hook: &Hook) -> Result<Vec<Effect>, String> {
    let program = hook.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut words = hook.args.iter().skip(1).map(String::as_str).skip_while(|word| *word == "hook");
    let (name, arguments) = (words.next().unwrap_or_default(), words.collect::<Vec<_>>());
    let unknown = || {
        let command = hook.args.join(" ");
        format!("the CDI specification's {} hook is not run: {} ({command})", hook.hook_name, hook.path.display())
    };
    if !PROGRAMS.contains(&program) {
        return Err(unknown());
    }
    let folders = || values(&arguments, "--folder").map(|folder| Effect::Folder(folder.into())).collect();
    match name {
        "create-symlinks" => {
            let pairs = values(&arguments, "--link").map(|link| link.split_once("::").ok_or_else(unknown));
            pairs.map(|pair| pair.map(|(names, at)| Effect::Link { names: names.into(), at: at.into() })).collect()
        }
        "update-ldcache" | "create-soname-symlinks" => Ok(folders()),
        "enable-cuda-compat" => Ok(compatibility(&arguments).into_iter().collect()),
        // Modes of directories in /dev, and what the driver says of making nodes there: those are the host's here.
        "chmod" | "disable-device-node-modification" => Ok(Vec::new()),
        _ => Err(unknown()),
    }
}

fn compatibility(arguments: &[&str]) -> Option<Effect> {
    let version = values(arguments, "--host-driver-version").next()?;
    let driver = version.split('.').next()?.parse().ok()?;
    let directory = values(arguments, "--cuda-compat-container-root").next().unwrap_or(COMPATIBILITY_DIRECTORY);
    Some(Effect::Compatibility(Compatibility { directory: directory.into(), driver }))
}

/// The values of `--flag VALUE` and `--flag=VALUE`.
fn values<'a>(arguments: &'a [&'a str], flag: &'a str) -> impl Iterator<Item = &'a str> {
    arguments.iter().enumerate().filter_map(move |(index, word)| match word.strip_prefix(flag)? {
        "" => arguments.get(index + 1).copied(),
        rest => rest.strip_prefix('='),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(path: &str, args: &[&str]) -> Hook {
        Hook {
            hook_name: "createContainer".into(),
            path: path.into(),
            args: args.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    fn link(names: &str, at: &str) -> Effect {
        Effect::Link { names: names.into(), at: at.into() }
    }

    #[test]
    fn both_spellings_of_a_hook_are_understood() {
        let links = ["--link", "libcuda.so.1::/usr/lib/libcuda.so", "--link=../a.so::/usr/lib/gbm/b.so"];
        let expected = vec![link("libcuda.so.1", "/usr/lib/libcuda.so"), link("../a.so", "/usr/lib/gbm/b.so")];

        let old = hook("/usr/bin/nvidia-ctk", &[&["nvidia-ctk", "hook", "create-symlinks"], &links[..]].concat());
        let new = hook("/usr/bin/nvidia-cdi-hook", &[&["nvidia-cdi-hook", "create-symlinks"], &links[..]].concat());

        assert_eq!(effect(&old), Ok(expected.clone()));
        assert_eq!(effect(&new), Ok(expected));
    }

    #[test]
    fn folders_of_the_loaders_cache_are_remembered() {
        let update = hook("/usr/bin/nvidia-ctk", &["nvidia-ctk", "hook", "update-ldcache", "--folder", "/usr/lib64"]);

        assert_eq!(effect(&update), Ok(vec![Effect::Folder("/usr/lib64".into())]));
    }

    #[test]
    fn newer_cuda_is_taken_by_the_hosts_version() {
        let plain =
            hook("/bin/nvidia-ctk", &["nvidia-ctk", "hook", "enable-cuda-compat", "--host-driver-version=550.163.01"]);
        let without = hook("/bin/nvidia-ctk", &["nvidia-ctk", "hook", "enable-cuda-compat"]);

        let expected = Compatibility { directory: COMPATIBILITY_DIRECTORY.into(), driver: 550 };
        assert_eq!(effect(&plain), Ok(vec![Effect::Compatibility(expected)]));
        assert_eq!(effect(&without), Ok(Vec::new()));
    }

    #[test]
    fn an_unknown_hook_is_named() {
        let other = hook("/opt/vendor/setup", &["setup", "create-symlinks", "--link", "a::/b"]);
        let newer = hook("/usr/bin/nvidia-ctk", &["nvidia-ctk", "hook", "from-the-future"]);

        assert!(effect(&other).unwrap_err().contains("createContainer hook is not run: /opt/vendor/setup"));
        assert!(effect(&newer).unwrap_err().contains("from-the-future"));
    }
}
