//! The few fields of an OCI image configuration that running an image needs.

use super::time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest configuration that is parsed, as registries bound manifests.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// An image configuration. What is missing or null is empty; fields not named here are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Processor architecture under its OCI name, such as `amd64`.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// Time of creation, as RFC 3339 text.
    #[serde(default, deserialize_with = "or_default")]
    pub created: String,
    /// How to run it.
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
}

/// How an OCI image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// Environment, as `NAME=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Program and first arguments.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program if there is no entry point; replaced by the caller's.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is too large to be one.
    #[error("an OCI image configuration of {0} bytes is larger than {MAX_CONFIG_BYTES}")]
    TooLarge(usize),
    /// It is no configuration.
    #[error("the OCI image configuration is not valid")]
    Json(#[from] serde_json::Error),
}

impl ImageConfig {
    /// Parses the JSON text of a configuration.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above 4 MiB; [`Error::Json`] for what is no JSON or has a field of the wrong type.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() > MAX_CONFIG_BYTES {
            return Err(Error::TooLarge(json.len()));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// The time of creation in seconds since 1970; 0 for one that is none, or is before that.
    pub fn created_seconds(&self) -> u32 {
        time::parse(&self.created).and_then(|time| u32::try_from(time.seconds).ok()).unwrap_or(0)
    }
}

/// What of a configuration says how to run the image, as JSON without what is empty.
///
/// # Errors
/// If it is no JSON.
pub fn run_config(config_json: &[u8]) -> Result<String, serde_json::Error> {
    let mut config: serde_json::Value = serde_json::from_slice(config_json)?;
    let mut run = config.get_mut("config").map(serde_json::Value::take).unwrap_or_default();
    if let Some(fields) = run.as_object_mut() {
        fields.retain(|_, value| {
            let is_empty = value.as_str().is_some_and(str::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty);
            !is_empty && !value.is_null() && value.as_bool() != Some(false)
        });
    } else {
        run = serde_json::json!({});
    }
    Ok(run.to_string())
}

/// Go programs write `null` for what is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_tells_how_to_run_the_image() {
        let json = br#"{"architecture":"arm64","created":"2026-01-02T03:04:05Z","os":"linux","rootfs":{},
            "config":{"Env":["PATH=/bin","A=b=c"],"Entrypoint":["/x"],"Cmd":null,"Labels":{"k":"v"},"WorkingDir":"/"}}"#;

        let config = ImageConfig::parse(json).unwrap();

        assert_eq!(config.architecture, "arm64");
        assert_eq!(config.created, "2026-01-02T03:04:05Z");
        assert_eq!(config.config.env, ["PATH=/bin", "A=b=c"]);
        assert_eq!(config.config.entrypoint, ["/x"]);
        assert_eq!(config.config.cmd, [""; 0]);
        assert_eq!(config.config.labels["k"], "v");
    }

    #[test]
    fn missing_and_null_fields_are_empty() {
        for json in ["{}", r#"{"config":null}"#, r#"{"config":{"Env":null},"created":null}"#] {
            assert_eq!(ImageConfig::parse(json.as_bytes()).unwrap(), ImageConfig::default(), "{json}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_an_error() {
        assert!(matches!(ImageConfig::parse(b"[]x"), Err(Error::Json(_))));
        assert!(matches!(ImageConfig::parse(br#"{"config":{"Env":"x"}}"#), Err(Error::Json(_))));
        assert!(matches!(ImageConfig::parse(&vec![b' '; MAX_CONFIG_BYTES + 1]), Err(Error::TooLarge(_))));
        assert!(ImageConfig::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn the_configuration_that_is_kept_is_that_of_running() {
        let json = br#"{"os":"linux","config":{"User":"","Env":["A=b"],"Cmd":null,"Tty":false,"Labels":{}}}"#;

        assert_eq!(run_config(json).unwrap(), r#"{"Env":["A=b"]}"#);
        assert_eq!(run_config(br#"{"config":null}"#).unwrap(), "{}");
        assert_eq!(run_config(b"{}").unwrap(), "{}");
    }
}
