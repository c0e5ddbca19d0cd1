//! One entry of a SIF's table: what an object is and where it lies.

use super::Error;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_BYTES: usize = 585;
/// Bytes of the name.
const NAME_BYTES: usize = 128;
/// Bytes of what depends on the type.
pub(super) const EXTRA_BYTES: usize = 384;
/// Marks a group number, so that it is told from an object's id.
const GROUP_MASK: u32 = 0xf000_0000;

/// An object of a SIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it holds.
    pub data_type: DataType,
    /// Its number within the image, from 1.
    pub id: u32,
    /// The group that it belongs to.
    pub group: Option<u32>,
    /// What it refers to, such as what a signature signs.
    pub link: Option<Link>,
    /// Where it begins in the file.
    pub offset_bytes: u64,
    /// How long it is.
    pub size_bytes: u64,
    /// Size with the unused bytes before it.
    pub padded_bytes: u64,
    /// Creation, in seconds since 1970.
    pub created_seconds: i64,
    /// Last change, in seconds since 1970.
    pub modified_seconds: i64,
    /// Its name, empty for most types.
    pub name: String,
    /// What depends on the type, as it is in the file.
    pub extra: Box<[u8; EXTRA_BYTES]>,
}

/// What an object refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The object with this id.
    Object(u32),
    /// All objects of this group.
    Group(u32),
}

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// The definition file that the image was built from.
    Deffile,
    /// Environment variables.
    EnvVar,
    /// Labels.
    Labels,
    /// A file system.
    Partition,
    /// A signature over other objects.
    Signature,
    /// JSON, told apart by name.
    GenericJson,
    /// Anything.
    Generic,
    /// An encrypted key.
    CryptoMessage,
    /// A bill of materials.
    Sbom,
    /// The index of an OCI-SIF.
    OciRootIndex,
    /// A manifest, configuration or layer of an OCI-SIF.
    OciBlob,
    /// A number that has no meaning yet.
    Unknown(i32),
}

impl DataType {
    const KNOWN: [(i32, Self); 11] = [
        (0x4001, Self::Deffile),
        (0x4002, Self::EnvVar),
        (0x4003, Self::Labels),
        (0x4004, Self::Partition),
        (0x4005, Self::Signature),
        (0x4006, Self::GenericJson),
        (0x4007, Self::Generic),
        (0x4008, Self::CryptoMessage),
        (0x4009, Self::Sbom),
        (0x400a, Self::OciRootIndex),
        (0x400b, Self::OciBlob),
    ];

    /// The type with this number.
    pub fn from_code(code: i32) -> Self {
        Self::KNOWN.iter().find(|known| known.0 == code).map_or(Self::Unknown(code), |known| known.1)
    }

    fn code(self) -> i32 {
        match self {
            Self::Unknown(code) => code,
            known => Self::KNOWN.iter().find(|entry| entry.1 == known).map_or(0, |entry| entry.0),
        }
    }
}

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Its file system.
    pub filesystem: FilesystemType,
    /// What it is for.
    pub kind: PartitionType,
    /// What its programs run on.
    pub arch: Arch,
}

/// The file system in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilesystemType {
    /// Squashfs.
    Squashfs,
    /// Ext3.
    Ext3,
    /// A tar archive.
    Archive,
    /// No known format.
    Raw,
    /// Squashfs in a LUKS volume.
    EncryptedSquashfs,
    /// Squashfs in gocryptfs.
    GocryptfsSquashfs,
    /// A number that has no meaning yet.
    Unknown(i32),
}

impl FilesystemType {
    /// The file system with this number.
    pub fn from_code(code: i32) -> Self {
        match code {
            1 => Self::Squashfs,
            2 => Self::Ext3,
            3 => Self::Archive,
            4 => Self::Raw,
            5 => Self::EncryptedSquashfs,
            6 => Self::GocryptfsSquashfs,
            other => Self::Unknown(other),
        }
    }

    fn code(self) -> i32 {
        match self {
            Self::Squashfs => 1,
            Self::Ext3 => 2,
            Self::Archive => 3,
            Self::Raw => 4,
            Self::EncryptedSquashfs => 5,
            Self::GocryptfsSquashfs => 6,
            Self::Unknown(other) => other,
        }
    }
}

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// A root file system, not the one to run.
    System,
    /// The root file system to run: an image has one at most.
    PrimarySystem,
    /// Data.
    Data,
    /// A writable layer for the root file system.
    Overlay,
    /// A number that has no meaning yet.
    Unknown(i32),
}

impl PartitionType {
    /// The type with this number.
    pub fn from_code(code: i32) -> Self {
        match code {
            1 => Self::System,
            2 => Self::PrimarySystem,
            3 => Self::Data,
            4 => Self::Overlay,
            other => Self::Unknown(other),
        }
    }

    fn code(self) -> i32 {
        match self {
            Self::System => 1,
            Self::PrimarySystem => 2,
            Self::Data => 3,
            Self::Overlay => 4,
            Self::Unknown(other) => other,
        }
    }
}

/// A processor architecture: two digits and a NUL, as SIF stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arch([u8; 3]);

impl Arch {
    /// None in particular.
    pub const UNKNOWN: Self = Self(*b"00\0");

    /// Code, name in OCI and Go, name in Rust and `uname -m` where that is another.
    const KNOWN: [(&[u8; 3], &str, &str); 13] = [
        (b"01\0", "386", "x86"),
        (b"02\0", "amd64", "x86_64"),
        (b"03\0", "arm", "arm"),
        (b"04\0", "arm64", "aarch64"),
        (b"05\0", "ppc64", "powerpc64"),
        (b"06\0", "ppc64le", "ppc64le"),
        (b"07\0", "mips", "mips"),
        (b"08\0", "mipsle", "mipsel"),
        (b"09\0", "mips64", "mips64"),
        (b"10\0", "mips64le", "mips64el"),
        (b"11\0", "s390x", "s390x"),
        (b"12\0", "riscv64", "riscv64"),
        (b"13\0", "loong64", "loongarch64"),
    ];

    /// The architecture with this name, either OCI's (`amd64`) or the machine's (`x86_64`).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::KNOWN.iter().find(|(_, oci, machine)| *oci == name || *machine == name).map(|known| Self(*known.0))
    }

    /// The architecture with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        let code = [b'0' + number / 10 % 10, b'0' + number % 10, 0];
        Self::KNOWN.iter().find(|known| number < 100 && *known.0 == code).map(|known| Self(*known.0))
    }

    /// Its OCI name, or `unknown`.
    pub fn name(self) -> &'static str {
        Self::KNOWN.iter().find(|known| *known.0 == self.0).map_or("unknown", |known| known.1)
    }

    pub(super) fn from_code(code: [u8; 3]) -> Self {
        Self(code)
    }

    pub(super) fn code(self) -> [u8; 3] {
        self.0
    }
}

impl Descriptor {
    /// What kind of partition it is, if it is one.
    pub fn partition(&self) -> Option<Partition> {
        let mut fields = Fields::new(self.extra.as_slice());
        (self.data_type == DataType::Partition).then(|| Partition {
            filesystem: FilesystemType::from_code(fields.i32()),
            kind: PartitionType::from_code(fields.i32()),
            arch: Arch::from_code(fields.array()),
        })
    }

    /// Decodes the descriptor in `raw`; `None` if the slot is free.
    pub(super) fn decode(raw: &[u8]) -> Result<Option<Self>, Error> {
        let mut fields = Fields::new(raw);
        let data_type = DataType::from_code(fields.i32());
        let [used] = fields.array();
        if used == 0 {
            return Ok(None);
        }
        let (id, group, link) = (fields.u32(), fields.u32() & !GROUP_MASK, fields.u32());
        let [offset, size, padded] = [fields.i64(), fields.i64(), fields.i64()];
        let cannot_be = |_| Error::Object { id, offset, size };
        let [created_seconds, modified_seconds] = [fields.i64(), fields.i64()];
        let _deprecated_owner = [fields.i64(), fields.i64()];
        let name: [u8; NAME_BYTES] = fields.array();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Some(Self {
            data_type,
            id,
            group: (group != 0).then_some(group),
            link: match (link, link & GROUP_MASK) {
                (0, _) => None,
                (id, 0) => Some(Link::Object(id)),
                (group, _) => Some(Link::Group(group & !GROUP_MASK)),
            },
            offset_bytes: u64::try_from(offset).map_err(cannot_be)?,
            size_bytes: u64::try_from(size).map_err(cannot_be)?,
            padded_bytes: u64::try_from(padded).unwrap_or_default(),
            created_seconds,
            modified_seconds,
            name: String::from_utf8_lossy(name).into_owned(),
            extra: Box::new(fields.array()),
        }))
    }

    /// The bytes of the descriptor. A name is cut to 128 bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(DESCRIPTOR_BYTES);
        bytes.extend(self.data_type.code().to_le_bytes());
        bytes.push(1);
        let link = match self.link {
            None => 0,
            Some(Link::Object(id)) => id,
            Some(Link::Group(group)) => group | GROUP_MASK,
        };
        for field in [self.id, self.group.unwrap_or(0) | GROUP_MASK, link] {
            bytes.extend(field.to_le_bytes());
        }
        for field in [self.offset_bytes, self.size_bytes, self.padded_bytes] {
            bytes.extend(field.to_le_bytes());
        }
        // The last two are the deprecated owner.
        for field in [self.created_seconds, self.modified_seconds, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        let mut name = self.name.clone().into_bytes();
        name.resize(NAME_BYTES, 0);
        bytes.extend(name);
        bytes.extend(self.extra.as_slice());
        bytes
    }
}

impl Partition {
    /// The type-dependent part of a partition's descriptor.
    pub(super) fn encode(self) -> Box<[u8; EXTRA_BYTES]> {
        let mut extra = Box::new([0; EXTRA_BYTES]);
        extra[..4].copy_from_slice(&self.filesystem.code().to_le_bytes());
        extra[4..8].copy_from_slice(&self.kind.code().to_le_bytes());
        extra[8..11].copy_from_slice(&self.arch.code());
        extra
    }
}

/// Takes fixed-size fields off the front of bytes; zeros once they run out.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }

    pub(super) fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
}
