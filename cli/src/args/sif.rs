//! Arguments of `sif`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

// Subcommands of `sif`.
#[derive(Debug, Subcommand)]
pub enum SifVerb {
    /// List the objects
    List {
        /// The image file
        image: PathBuf,
    },
    /// Print the header
    Header {
        /// The image file
        image: PathBuf,
    },
    /// Print all that is known of one object
    Info(SifObjectArgs),
    /// Write the bytes of one object to stdout
    Dump(SifObjectArgs),
    /// Make an image without objects, in place of a file that is there
    New {
        /// The image file
        image: PathBuf,
    },
    /// Add an object
    Add(SifAddArgs),
    /// Take an object out
    Del(SifObjectArgs),
    /// Make a system partition the one that is run
    Setprim(SifObjectArgs),
}

// `sif add`.
#[derive(Debug, Args)]
pub struct SifAddArgs {
    /// What the object is: 1 definition file, 2 environment, 3 labels, 4 partition, 5 signature, 6 JSON, 7 anything,
    /// 8 encrypted key, 9 SBOM, 10 index of an OCI-SIF, 11 blob of one
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=11))]
    pub datatype: u8,
    /// Of a partition, its file system: 1 squashfs, 2 ext3, 3 archive, 4 raw
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub partfs: Option<u8>,
    /// Of a partition, what it is for: 1 system, 2 the system that is run, 3 data, 4 overlay
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub parttype: Option<u8>,
    /// Of a partition, what it runs on: 1 386, 2 amd64, 3 arm, 4 arm64, 5 ppc64, 6 ppc64le, 7 mips, 8 mipsle, 9 mips64,
    /// 10 mips64le, 11 s390x, 12 riscv64
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=13))]
    pub partarch: Option<u8>,
    /// Of a signature, its hash: 1 SHA-256, 2 SHA-384, 3 SHA-512, 4 BLAKE2s-256, 5 BLAKE2b-256
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub signhash: Option<u8>,
    /// Of a signature, the fingerprint of who signed, as 40 hexadecimal digits
    #[arg(long, value_name = "FINGERPRINT")]
    pub signentity: Option<String>,
    /// Of an SBOM, its format: cyclonedx-json, cyclonedx-xml, github-json, spdx-json, spdx-rdf, spdx-tag-value, spdx-yaml or
    /// syft-json
    #[arg(long, value_name = "FORMAT")]
    pub sbomformat: Option<String>,
    /// The group that the object belongs to
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub groupid: u32,
    /// The object that it is about
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub link: u32,
    /// On a multiple of so many bytes: of 4096 for a partition, else anywhere
    #[arg(long, value_name = "BYTES")]
    pub alignment: Option<u32>,
    /// The name of the object
    #[arg(long, value_name = "NAME")]
    pub filename: Option<String>,
    /// The image file
    pub image: PathBuf,
    /// The file to add
    pub object: PathBuf,
}

// `sif info`, `dump`, `del` and `setprim`.
#[derive(Debug, Args)]
pub struct SifObjectArgs {
    /// The number of the object, as `sif list` has it
    pub id: u32,
    /// The image file
    pub image: PathBuf,
}
