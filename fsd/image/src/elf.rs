//! Which machine an ELF file is for: the first twenty bytes of its header.

use serde::{Deserialize, Serialize};

/// Bytes of a file that tell its machine.
pub const HEADER_BYTES: usize = 20;

/// `e_ident[EI_CLASS]` and `e_machine` of an ELF header: what a program and its libraries have to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ElfKind {
    /// 1 for 32 bits, 2 for 64.
    pub class: u8,
    /// The machine's number, such as 62 for x86-64 and 183 for AArch64.
    pub machine: u16,
}

/// x86-64, as most machines with a GPU.
pub const X86_64: ElfKind = ElfKind { class: 2, machine: 62 };
/// The 32-bit programs that an x86-64 machine runs.
pub const I386: ElfKind = ElfKind { class: 1, machine: 3 };
/// 64-bit ARM.
pub const AARCH64: ElfKind = ElfKind { class: 2, machine: 183 };
/// The 32-bit programs that some 64-bit ARM machines run.
pub const ARM: ElfKind = ElfKind { class: 1, machine: 40 };

impl ElfKind {
    /// Reads the beginning of a file. `None` if that is no ELF file.
    pub fn of_header(header: &[u8]) -> Option<Self> {
        let [0x7f, b'E', b'L', b'F', class, data, ..] = *header else { return None };
        let machine = <[u8; 2]>::try_from(header.get(18..HEADER_BYTES)?).ok()?;
        let machine = if data == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
        Some(Self { class, machine })
    }

    /// What the 32-bit programs of a 64-bit machine are.
    pub fn narrow(self) -> Option<Self> {
        match self {
            X86_64 => Some(I386),
            AARCH64 => Some(ARM),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_its_machine_in_either_byte_order() {
        let header = |data, machine: [u8; 2]| {
            let mut header = vec![0x7f, b'E', b'L', b'F', 2, data];
            header.resize(18, 0);
            header.extend(machine);
            header
        };

        assert_eq!(ElfKind::of_header(&header(1, [62, 0])), Some(X86_64));
        assert_eq!(ElfKind::of_header(&header(2, [0, 62])), Some(X86_64));
        assert_eq!(ElfKind::of_header(&header(1, [183, 0])), Some(AARCH64));
    }

    #[test]
    fn what_is_too_short_or_something_else_has_no_machine() {
        assert_eq!(ElfKind::of_header(b"\x7fELF\x02\x01"), None);
        assert_eq!(ElfKind::of_header(b"/* GNU ld script, a text */"), None);
    }
}
