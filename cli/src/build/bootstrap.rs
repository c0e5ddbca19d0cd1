//! What a stage is built on: an image that can be mounted, or a program of the host that makes a root file system.

use super::agents::Bootstrap;
use super::definition::Stage;
use anyhow::bail;

/// What a stage is built on.
#[derive(Debug, Clone)]
pub(super) enum Base {
    /// An image, by what `Locator::parse` takes.
    Image(String),
    /// Nothing.
    Scratch,
    /// What a program of the host makes.
    Made(Bootstrap),
}

/// Finds out what a stage is built on.
///
/// # Errors
/// If the header lacks something, or the agent is none that there is.
pub(super) fn base(stage: &Stage) -> anyhow::Result<Base> {
    let agent = stage.agent();
    let from = || match stage.header.get("from").map(|from| from.trim()).filter(|from| !from.is_empty()) {
        Some(from) => Ok(from.to_owned()),
        None => bail!("Bootstrap: {agent} needs a line \"From:\" that names the image"),
    };
    match agent.as_str() {
        "localimage" => Ok(Base::Image(from()?)),
        "http" | "https" => {
            let from = from()?;
            let has_scheme = from.starts_with("http://") || from.starts_with("https://");
            Ok(Base::Image(if has_scheme { from } else { format!("{agent}://{}", from.trim_start_matches('/')) }))
        }
        "scratch" => Ok(Base::Scratch),
        "busybox" | "debootstrap" | "yum" | "dnf" | "zypper" | "arch" => Ok(Base::Made(Bootstrap::new(&agent, stage)?)),
        "docker" => Ok(Base::Image(docker(stage, &from()?))),
        "oras" | "library" | "shub" => {
            let from = from()?;
            let path = from.strip_prefix(&format!("{agent}://")).unwrap_or(&from);
            Ok(Base::Image(format!("{agent}://{}", path.trim_start_matches('/'))))
        }
        "docker-archive" | "docker-daemon" | "oci" | "oci-archive" => Ok(Base::Image(format!("{agent}:{}", from()?))),
        "buildkit" | "dockerfile" => {
            bail!(
                "Bootstrap: {agent} is not supported; build the image with its own program, and name the file that it \
                   saves with \"Bootstrap: docker-archive\""
            )
        }
        other => bail!(
            "invalid build source {other}; it is one of docker, localimage, library, oras, shub, http, https, \
             docker-daemon, docker-archive, oci, oci-archive, scratch, busybox, debootstrap, yum, dnf, zypper and arch"
        ),
    }
}

/// The name of an image in a registry, of which the header may give the registry and the first part of the path apart.
fn docker(stage: &Stage, from: &str) -> String {
    let part =
        |key: &str| stage.header.get(key).map(|value| value.trim().trim_matches('/')).filter(|it| !it.is_empty());
    let path = from.strip_prefix("docker://").unwrap_or(from).trim_start_matches('/');
    let registry = part("registry").map(|registry| registry.rsplit_once("://").map_or(registry, |(_, host)| host));
    let parts = [registry, part("namespace"), Some(path)];
    format!("docker://{}", parts.into_iter().flatten().collect::<Vec<_>>().join("/"))
}
