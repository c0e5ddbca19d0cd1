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
        "docker" | "oras" | "library" | "shub" | "docker-daemon" | "docker-archive" | "oci" | "oci-archive" => {
            from()?;
            bail!(
                "Bootstrap: {agent} is not supported yet; pull the image with another program, and name its file with \
                   \"Bootstrap: localimage\""
            )
        }
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
