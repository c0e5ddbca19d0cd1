//! Which of the images of an index is for a machine.

use super::{Descriptor, ImageIndex};

/// What an image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The architecture, as Go names it.
    pub arch: String,
    /// Its variant, such as `v7`; any if `None`.
    pub variant: Option<String>,
}

impl Wanted {
    /// A variant is written with or without its letter.
    pub fn new(arch: &str, variant: Option<&str>) -> Self {
        let filled = variant.filter(|variant| !variant.is_empty());
        let variant =
            filled.map(|variant| if variant.starts_with('v') { variant.into() } else { format!("v{variant}") });
        Self { arch: arch.to_owned(), variant }
    }
}

/// The image of `index` for `wanted`: one of the very variant first, then one of any if none is asked for.
///
/// # Errors
/// What there is instead, as `ARCH` or `ARCH/VARIANT`.
pub fn choose<'a>(index: &'a ImageIndex, wanted: &Wanted) -> Result<&'a Descriptor, Vec<String>> {
    let variant = |image: &Descriptor| image.platform().as_ref().and_then(|platform| platform.variant().clone());
    let fits = |image: &&Descriptor| {
        let platform = image.platform().as_ref();
        platform.is_some_and(|it| it.os().to_string() == "linux" && it.architecture().to_string() == wanted.arch)
    };
    let fitting: Vec<&Descriptor> = index.manifests().iter().filter(fits).collect();
    let exact = fitting.iter().find(|image| variant(image) == wanted.variant);
    // Of 64-bit ARM there is one variant, which some write down and some do not.
    let is_open = wanted.variant.is_none() || (wanted.arch == "arm64" && wanted.variant.as_deref() == Some("v8"));
    exact.or_else(|| fitting.first().filter(|_| is_open)).copied().ok_or_else(|| {
        let name = |image: &Descriptor| {
            let platform = image.platform().as_ref()?;
            let variant = platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
            Some(format!("{}{variant}", platform.architecture())).filter(|_| platform.os().to_string() == "linux")
        };
        index.manifests().iter().filter_map(name).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> ImageIndex {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let manifests = platforms.iter().enumerate().map(|(number, (os, arch, variant))| {
            let mut platform = serde_json::json!({"os": os, "architecture": arch});
            if let Some(variant) = variant {
                platform["variant"] = serde_json::json!(variant);
            }
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            serde_json::json!({"mediaType": media_type, "digest": digest, "size": number, "platform": platform})
        });
        let manifests: Vec<_> = manifests.collect();
        serde_json::from_value(serde_json::json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
    }

    #[test]
    fn an_image_is_chosen_by_architecture_and_variant() {
        let index = index(&[
            ("windows", "amd64", None),
            ("linux", "amd64", None),
            ("linux", "arm", Some("v6")),
            ("linux", "arm", Some("v7")),
            ("linux", "arm64", None),
            ("unknown", "unknown", None),
        ]);
        let number = |arch, variant| choose(&index, &Wanted::new(arch, variant)).map(|found| found.size());

        assert_eq!(number("amd64", None), Ok(1));
        assert_eq!(number("arm", None), Ok(2));
        assert_eq!(number("arm", Some("7")), Ok(3));
        assert_eq!(number("arm64", Some("v8")), Ok(4));
        assert_eq!(number("arm", Some("5")), Err(["amd64", "arm/v6", "arm/v7", "arm64"].map(str::to_owned).to_vec()));
        assert!(number("s390x", None).is_err());
    }
}
