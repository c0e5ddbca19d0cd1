//! Base systems that programs of the host make: debootstrap, dnf, zypper, pacman, and busybox from its own site.

mod devices;

use super::definition::Stage;
use super::root::Root;
use crate::report::Report;
use anyhow::{Context, bail};
use devices::Devices;
use serde::{Deserialize, Serialize};
use siphon_fsd::source::Whole;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A static busybox has about 2 MiB.
const MAX_BUSYBOX_BYTES: u64 = 64 << 20;
const MAX_CONFIGURATION_BYTES: u64 = 1 << 20;
/// What apptainer leaves out of a Debian.
const LEFT_OUT: &str = "openssl,udev,debconf-i18n,e2fsprogs";

/// A base system to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Bootstrap {
    agent: String,
    header: BTreeMap<String, String>,
}

impl Bootstrap {
    /// By the header of a stage.
    ///
    /// # Errors
    /// If it lacks something.
    pub(super) fn new(agent: &str, stage: &Stage) -> anyhow::Result<Self> {
        let needed: &[&str] = match agent {
            "debootstrap" => &["osversion", "mirrorurl"],
            "yum" | "dnf" | "zypper" | "busybox" => &["mirrorurl"],
            _ => &[],
        };
        let mut header = stage.header.clone();
        header.remove("stage");
        if let Some(missing) = needed.iter().find(|key| header.get(**key).is_none_or(|value| value.is_empty())) {
            bail!("Bootstrap: {agent} needs a line \"{missing}:\" in the header");
        }
        let version = header.get("osversion").cloned().unwrap_or_default();
        for (key, value) in &mut header {
            if version.is_empty() && value.contains("%{OSVERSION}") {
                bail!("the line \"{key}:\" names %{{OSVERSION}}, and there is no line \"OSVersion:\" in the header");
            }
            *value = value.replace("%{OSVERSION}", &version);
        }
        Ok(Self { agent: agent.to_owned(), header })
    }

    fn get(&self, key: &str) -> &str {
        self.header.get(key).map(String::as_str).unwrap_or_default()
    }

    fn packages(&self) -> Vec<&str> {
        self.get("include").split([' ', ',', '\n', '\t']).filter(|name| !name.is_empty()).collect()
    }

    /// Whether the host has the program.
    ///
    /// # Errors
    /// What is missing, and which package has it.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let (programs, packages): (&[&str], &str) = match self.agent.as_str() {
            "debootstrap" => (&["mmdebstrap", "debootstrap"], "mmdebstrap, or debootstrap"),
            "yum" | "dnf" => (&["dnf", "yum"], "dnf"),
            "zypper" => (&["zypper"], "zypper"),
            "arch" => (&["pacman"], "pacman-package-manager, which some systems call pacman"),
            _ => return Ok(()),
        };
        if find(programs).is_none() {
            bail!(
                "Bootstrap: {} needs {} on this machine; install the package {packages}",
                self.agent,
                programs.join(" or ")
            );
        }
        Ok(())
    }
}

/// The first of these programs that there is.
fn find<'a>(programs: &[&'a str]) -> Option<(&'a str, PathBuf)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect();
    programs.iter().find_map(|program| {
        let found = directories.iter().map(|directory| directory.join(program)).find(|path| path.is_file());
        found.map(|found| (*program, found))
    })
}

/// Makes the base system in `root`.
pub(super) fn run(bootstrap: &Bootstrap, root: &Root, report: Report) -> anyhow::Result<()> {
    match bootstrap.agent.as_str() {
        "debootstrap" => debian(bootstrap, root, report),
        "yum" | "dnf" => dnf(bootstrap, root, report),
        "zypper" => zypper(bootstrap, root, report),
        "arch" => arch(bootstrap, root, report),
        "busybox" => busybox(bootstrap, root, report),
        other => bail!("there is no agent {other}"),
    }
}

fn debian(bootstrap: &Bootstrap, root: &Root, report: Report) -> anyhow::Result<()> {
    let (suite, mirror) = (bootstrap.get("osversion"), bootstrap.get("mirrorurl"));
    let included: Vec<_> = ["apt"].into_iter().chain(bootstrap.packages()).collect();
    let Some((name, program)) = find(&["mmdebstrap", "debootstrap"]) else { bail!("mmdebstrap is gone") };
    report.info(format_args!("Running {name} for {suite} from {mirror}"));
    if name == "debootstrap" {
        let mut command = Command::new(program);
        command.args([
            "--variant=minbase",
            &format!("--exclude={LEFT_OUT}"),
            &format!("--include={}", included.join(",")),
        ]);
        return finished(name, command.arg(suite).arg(&root.path).arg(mirror));
    }
    // It is root of this namespace already. What it makes comes as an archive, so that it needs no mounts in the layer.
    let mut maker = Command::new(program);
    maker.args(["--mode=root", "--variant=minbase", "--format=tar", &format!("--include={}", included.join(","))]);
    maker.arg("--skip=check/empty").arg(suite).arg("-").arg(mirror);
    maker.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut maker = maker.spawn().context("cannot run mmdebstrap")?;
    let archive = maker.stdout.take().context("mmdebstrap has no output")?;
    let mut unpacker = Command::new("tar");
    unpacker.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-x", "-p", "--exclude=./dev/*", "-C"]);
    let unpacked = finished("tar", unpacker.arg(&root.path).stdin(Stdio::from(archive)));
    let status = maker.wait()?;
    if !status.success() {
        bail!("{name} failed: {}", super::child::said(status));
    }
    unpacked
}

/// Runs a program of the host to its end.
fn finished(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} failed: {}", super::child::said(status));
    }
    Ok(())
}

fn dnf(bootstrap: &Bootstrap, root: &Root, report: Report) -> anyhow::Result<()> {
    let Some((name, program)) = find(&["dnf", "yum"]) else { bail!("dnf is gone") };
    let mut repositories = repository("base", bootstrap.get("mirrorurl"));
    if !bootstrap.get("updateurl").is_empty() {
        repositories.push_str(&repository("updates", bootstrap.get("updateurl")));
    }
    let configuration = format!(
        "[main]\ncachedir=/var/cache/{name}\nkeepcache=0\ngpgcheck=0\nplugins=1\nreposdir=/dev/null\n\n{repositories}"
    );
    root.put("etc/bootstrap-yum.conf", configuration.as_bytes(), 0o644)?;
    let _devices = Devices::bind(root)?;
    report.info(format_args!("Running {name} for {}", bootstrap.get("mirrorurl")));
    let mut command = Command::new(program);
    command.arg("-c").arg(root.path.join("etc/bootstrap-yum.conf"));
    command.arg(format!("--installroot={}", root.path.display()));
    for option in bootstrap.get("setopt").split_whitespace() {
        command.arg(format!("--setopt={option}"));
    }
    if !bootstrap.get("osversion").is_empty() {
        command.arg(format!("--releasever={}", bootstrap.get("osversion")));
    }
    command
        .args(["--assumeyes", "-y", "install"])
        .args(["/etc/redhat-release", "coreutils"])
        .args(bootstrap.packages());
    finished(name, &mut command)?;
    root.remove("etc/bootstrap-yum.conf")
}

fn repository(name: &str, url: &str) -> String {
    let kind = if url.contains("mirrorlist") { "mirrorlist" } else { "baseurl" };
    format!("[{name}]\nname=Linux $releasever - $basearch\n{kind}={url}\nenabled=1\ngpgcheck=0\n\n")
}

fn zypper(bootstrap: &Bootstrap, root: &Root, report: Report) -> anyhow::Result<()> {
    if !bootstrap.get("product").is_empty() {
        bail!(
            "Bootstrap: zypper with \"Product:\" registers at SUSE, which siphon does not; give a \"MirrorURL:\" instead"
        );
    }
    let place = root.path.display().to_string();
    let zypper =
        |arguments: &[&str]| finished("zypper", Command::new("zypper").args(["--root", &place]).args(arguments));
    let _devices = Devices::bind(root)?;
    report.info(format_args!("Running zypper for {}", bootstrap.get("mirrorurl")));
    // A repository's key is taken from itself, so that having none is no worse; but what is signed has to be signed rightly.
    let add = |url: &str, name: &str| zypper(&["-n", "ar", "--gpgcheck-allow-unsigned", url, name]);
    add(bootstrap.get("mirrorurl"), "repo")?;
    for (key, url) in bootstrap.header.iter().filter(|(key, _)| key.starts_with("otherurl")) {
        add(url, key)?;
    }
    zypper(&["-n", "--gpg-auto-import-keys", "refresh"])?;
    let mut wanted = vec!["-n", "install", "--auto-agree-with-licenses", "--download-in-advance", "aaa_base"];
    wanted.extend(bootstrap.packages());
    zypper(&wanted)
}

/// As pacstrap does it. That program mounts what only root of the host may mount.
fn arch(bootstrap: &Bootstrap, root: &Root, report: Report) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("cannot make a directory for pacman")?;
    let mut configuration = PathBuf::from("/etc/pacman.conf");
    if !bootstrap.get("confurl").is_empty() {
        configuration = scratch.path().join("pacman.conf");
        std::fs::write(&configuration, fetch(bootstrap.get("confurl"), MAX_CONFIGURATION_BYTES)?)?;
    }
    for directory in ["var/lib/pacman", "var/log", "etc/pacman.d", "run"] {
        root.make_directory(Path::new(directory), 0o755)?;
    }
    let _devices = Devices::bind(root)?;
    report.info("Running pacman");
    let mut command = Command::new("pacman");
    command.arg("--root").arg(&root.path).arg("--config").arg(&configuration);
    // What is fetched is neither the host's nor the image's to keep.
    command.arg("--cachedir").arg(scratch.path()).args(["--noconfirm", "-Sy", "base", "haveged"]);
    finished("pacman", command.args(bootstrap.packages()))
}

fn busybox(bootstrap: &Bootstrap, root: &Root, report: Report) -> anyhow::Result<()> {
    let url = format!("{}/busybox", bootstrap.get("mirrorurl").trim_end_matches('/'));
    report.info(format_args!("Fetching {url}"));
    let program = fetch(&url, MAX_BUSYBOX_BYTES)?;
    if !program.starts_with(b"\x7fELF") {
        bail!("{url} is no program: its first bytes are not those of an ELF file");
    }
    root.put("bin/busybox", &program, 0o755)?;
    root.put("etc/passwd", b"root:!:0:0:root:/root:/bin/sh\n", 0o644)?;
    root.put("etc/group", b"root:x:0:\n", 0o644)?;
    let busybox = root.path.join("bin/busybox");
    let list = Command::new(&busybox).arg("--list").output().with_context(|| format!("cannot run {url}"))?;
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        if applet != "busybox" && applet.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_[".contains(&byte)) {
            root.link(&format!("bin/{applet}"), "busybox")?;
        }
    }
    Ok(())
}

/// The bytes behind a URL, `file://` too.
fn fetch(url: &str, max_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("cannot fetch {url}");
    let source: Box<dyn Read> = match url.strip_prefix("file://") {
        Some(path) => Box::new(File::open(path).with_context(failed)?),
        None => Box::new(Whole::open(url).with_context(failed)?),
    };
    let mut bytes = Vec::new();
    source.take(max_bytes + 1).read_to_end(&mut bytes).with_context(failed)?;
    if bytes.len() as u64 > max_bytes {
        bail!("{url} has more than {max_bytes} bytes");
    }
    Ok(bytes)
}
