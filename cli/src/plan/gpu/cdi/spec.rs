//! The fields of a CDI specification that a run needs (<https://github.com/cncf-tags/container-device-interface>).

use serde::Deserialize;
use std::path::PathBuf;

/// A specification and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFile {
    /// The file.
    pub path: PathBuf,
    /// The place of its directory among those that were searched.
    pub directory: usize,
    /// What it says.
    pub spec: Spec,
}

/// A specification: devices of one vendor and class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub(super) kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    /// What every device needs.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

impl Spec {
    /// Reads JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// Reads YAML.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// What a device needs besides.
    pub(super) fn edits(&self, name: &str) -> Option<&Edits> {
        self.devices.iter().find(|device| device.name == name).map(|device| &device.container_edits)
    }

    /// The full names of its devices.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.devices.iter().map(|device| format!("{}={}", self.kind, device.name))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What is to be changed of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Edits {
    /// Each `NAME=VALUE`.
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    pub(super) hooks: Vec<Hook>,
}

/// A device node; its numbers and mode are those that it has on the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// A program that is to be run at some moment of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    /// The first one is the program's name.
    #[serde(default)]
    pub(super) args: Vec<String>,
}
