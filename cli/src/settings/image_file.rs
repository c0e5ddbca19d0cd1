//! How an image file is to be made.

use super::{Environment, SettingsError};
use crate::args::ImageFlags;
use siphon_image::squashfs::format::Compressor;

/// How an image file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSettings {
    /// Whether an existing file is replaced.
    pub force: bool,
    /// How everything is compressed; `None` for what the image below has, which is then copied where it is unchanged.
    pub compression: Option<Compression>,
    /// Which share of unused content of the image below is left out.
    pub compact_percent: u8,
    /// The time to put in place of the present one and of later ones, in seconds since 1970: `SOURCE_DATE_EPOCH`.
    pub epoch_seconds: Option<u32>,
}

/// A compressor and how hard it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The compressor.
    pub compressor: Compressor,
    /// Its level; `None` for its usual one.
    pub level: Option<i32>,
    /// Whether nothing is compressed after all.
    pub is_none: bool,
}

impl ImageSettings {
    /// Reads the flags and the environment.
    ///
    /// # Errors
    /// [`SettingsError::Compression`] and [`SettingsError::SourceDateEpoch`].
    pub fn resolve(flags: &ImageFlags, environment: &Environment) -> Result<Self, SettingsError> {
        let parse = |text: &String| Compression::parse(text).ok_or_else(|| SettingsError::Compression(text.clone()));
        let epoch = |text: &std::ffi::OsStr| {
            let seconds = text.to_str().and_then(|text| text.parse().ok());
            seconds.ok_or_else(|| SettingsError::SourceDateEpoch(text.to_string_lossy().into_owned()))
        };
        Ok(Self {
            force: flags.force,
            compression: flags.compression.as_ref().map(parse).transpose()?,
            compact_percent: flags.compact,
            epoch_seconds: environment.get("SOURCE_DATE_EPOCH").map(epoch).transpose()?,
        })
    }
}

impl Compression {
    fn parse(text: &str) -> Option<Self> {
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let level = level.map(str::parse).transpose().ok()?;
        let (compressor, levels) = match name {
            "zstd" => (Compressor::Zstd, Some(1..=22)),
            "gzip" => (Compressor::Gzip, Some(1..=9)),
            "xz" => (Compressor::Xz, Some(0..=9)),
            "lz4" => (Compressor::Lz4, None),
            "lzo" => (Compressor::Lzo, None),
            // Readers have to be told one.
            "none" => (Compressor::Gzip, None),
            _ => return None,
        };
        let is_known = level.is_none_or(|level| levels.is_some_and(|levels| levels.contains(&level)));
        is_known.then_some(Self { compressor, level, is_none: name == "none" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressor_may_have_a_level_of_its_own_scale() {
        let parse = |text: &str| Compression::parse(text).map(|found| (found.compressor, found.level, found.is_none));

        assert_eq!(parse("zstd"), Some((Compressor::Zstd, None, false)));
        assert_eq!(parse("zstd:19"), Some((Compressor::Zstd, Some(19), false)));
        assert_eq!(parse("none"), Some((Compressor::Gzip, None, true)));
        for wrong in ["zstd:23", "gzip:0", "lz4:1", "zstd:", "brotli", "", "none:1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_time_of_a_reproducible_image_is_a_number() {
        let resolve = |text| {
            let environment = Environment::made_up(&[("SOURCE_DATE_EPOCH", text)]);
            ImageSettings::resolve(&ImageFlags::default(), &environment).map(|settings| settings.epoch_seconds)
        };

        assert_eq!(resolve("1700000000").unwrap(), Some(1_700_000_000));
        assert_eq!(resolve("").unwrap(), None);
        assert!(resolve("yesterday").unwrap_err().to_string().contains("yesterday"));
    }
}
