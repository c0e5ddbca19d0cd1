//! A filter of system calls for a container in which root is the only user.
//!
//! ```text
//! chown, fchown, lchown, fchownat    to root or to nobody in particular: as usual; to others: done, it says
//! mknod, mknodat                     of a device but 0:0: done, it says; of anything else: as usual
//! calls that are to be answered      wait for the process that holds the listener
//! all others, and other machines'    as usual
//! ```
//!
//! The filter is a program for the kernel's classic BPF machine: conditions over the number and the arguments of a call.
//! It decides on what a call does, never on who may: it protects from nothing, and has nothing to hold against a program
//! that goes around it, which only meets the kernel's own answers.

#![expect(unsafe_code, reason = "seccomp and its listener have no safe interface")]

use nix::libc::{self, c_long, c_ulong, sock_filter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// What `AUDIT_ARCH` the kernel calls this machine (`linux/audit.h`).
#[cfg(target_arch = "x86_64")]
const MACHINE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const MACHINE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const MACHINE: u32 = 0xc000_00f3;
#[cfg(target_arch = "powerpc64")]
const MACHINE: u32 = if cfg!(target_endian = "little") { 0xc000_0015 } else { 0x8000_0015 };

/// Numbers of the x32 interface have this bit on top of their own; no other machine has numbers as large.
const FOREIGN_NUMBERS: u32 = 0x4000_0000;
/// Where `struct seccomp_data` has the number of the call.
const NUMBER: u32 = 0;
/// Where it has the machine.
const ARCH: u32 = 4;
/// Where it has the first argument; each takes eight bytes.
const ARGUMENTS: u32 = 16;
/// "Leave as it is", for an owner.
const UNCHANGED: u32 = u32::MAX;
/// Ends a call with this answer: an error number, or success.
const SUCCEED: u32 = libc::SECCOMP_RET_ERRNO;

/// Calls that change owners, and which of their arguments is the user; the group follows it.
const CHOWN: &[(c_long, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, 1),
    (libc::SYS_fchown, 1),
    (libc::SYS_fchownat, 2),
];

/// Calls that make nodes, and which of their arguments is the mode; the device follows it.
const MKNOD: &[(c_long, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];

/// How long a listener waits before it looks whether anyone is left who could call, where the kernel does not say.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Puts the filter on the calling thread, for good, and for all that it starts. The calls numbered `answered` wait for
/// the returned listener; while there is none, they fail with `ENOSYS`. `None` if this process has such a filter: its
/// answers go on.
///
/// Needs `CAP_SYS_ADMIN` in the user namespace of the caller.
///
/// # Errors
/// If the kernel refuses, as it does with `EBUSY` where another program's filter has the one listener that there can
/// be, or has no listeners (before 5.0).
pub fn install(answered: &[c_long]) -> io::Result<Option<Listener>> {
    let mut instructions = program(answered);
    let length = instructions.len().try_into().map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    let set = |flags: c_ulong| {
        // SAFETY: the kernel copies the program, which lives until the end of this function, and touches nothing else.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    };
    // A signal must not end the wait of calls that cannot fail, such as getuid. Linux 5.19 can see to that.
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let set = match set(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(listener),
        outcome => outcome,
    };
    let descriptor = match set {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) && is_installed() => return Ok(None),
        outcome => outcome?,
    };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(Some(Listener(unsafe { OwnedFd::from_raw_fd(descriptor) })))
}

/// Whether the owners that this process gives to files are pretended: no kernel gives one to what is not open.
fn is_installed() -> bool {
    // SAFETY: three numbers, of which the kernel takes none for an address.
    unsafe { libc::fchown(-1, 1, 1) == 0 }
}

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    id: u64,
    /// The thread that makes it, as this process numbers threads; 0 if it cannot see it.
    pub thread: u32,
    /// The number of the call.
    pub number: c_long,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// Where calls arrive that wait for answers.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl From<OwnedFd> for Listener {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.0
    }
}

impl Listener {
    /// Waits for the next call. `None` when no process is left that has the filter: newer kernels (5.9) say so, and
    /// with older ones `is_anyone_left` is asked now and then.
    ///
    /// # Errors
    /// If this is not a listener.
    pub fn next(&self, is_anyone_left: impl Fn() -> bool) -> io::Result<Option<Call>> {
        loop {
            if !is_readable(&self.0, PATIENCE, &is_anyone_left)? {
                return Ok(None);
            }
            // SAFETY: all fields are numbers, for which zeros are values; the kernel demands them.
            let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the request's number carries the size of this structure, which is all that the kernel writes to.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notice) };
            match io::Error::last_os_error() {
                _ if result == 0 => {
                    let libc::seccomp_data { nr, args, .. } = notice.data;
                    let call = Call { id: notice.id, thread: notice.pid, number: nr.into(), arguments: args };
                    return Ok(Some(call));
                }
                // The caller was killed or interrupted meanwhile.
                error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                error => return Err(error),
            }
        }
    }

    /// Whether `call` still waits: if so, its thread is the one that made it, and no later one with the same number.
    pub fn is_waiting(&self, call: &Call) -> bool {
        // SAFETY: the kernel reads one number, which outlives the call.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const call.id) == 0 }
    }

    /// Ends `call` with a value, or an error number.
    ///
    /// # Errors
    /// If this is not a listener. A caller that does not wait any more is none.
    pub fn answer(&self, call: &Call, result: Result<i64, i32>) -> io::Result<()> {
        let (val, error) = match result {
            Ok(value) => (value, 0),
            Err(errno) => (0, -errno),
        };
        let answer = libc::seccomp_notif_resp { id: call.id, val, error, flags: 0 };
        // SAFETY: the request's number carries the size of this structure, which is all that the kernel reads.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        }
    }
}

/// Waits until there is something to read. `false` once there never will be: the other side is gone, or nobody is left,
/// which is asked each time that nothing came for `patience`.
fn is_readable(descriptor: impl AsFd, patience: Timespec, is_anyone_left: impl Fn() -> bool) -> io::Result<bool> {
    loop {
        let mut ready = [PollFd::new(&descriptor, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut ready, Some(&patience)))? {
            0 if is_anyone_left() => {}
            0 => return Ok(false),
            _ => return Ok(ready[0].revents().contains(PollFlags::IN)),
        }
    }
}

/// The whole filter. Each call has a block that ends in a verdict, skipped for others.
fn program(answered: &[c_long]) -> Vec<sock_filter> {
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let mut program = vec![load(ARCH), skip_unless_equal(MACHINE, 0), load(NUMBER)];
    // Both checks leave for the verdict of the second one.
    program[1].jf = 2;
    program.extend([skip_if_below(FOREIGN_NUMBERS, 1), allow]);
    let blocks = (answered.iter().map(|number| (*number, vec![give(libc::SECCOMP_RET_USER_NOTIF)])))
        .chain(CHOWN.iter().map(|(number, user)| (*number, chown(*user))))
        .chain(MKNOD.iter().map(|(number, mode)| (*number, mknod(*mode))));
    for (number, block) in blocks {
        let length = u8::try_from(block.len()).expect("a block is a few instructions long");
        let number = u32::try_from(number).expect("numbers of calls are small");
        program.push(skip_unless_equal(number, length));
        program.extend(block);
    }
    program.push(allow);
    program
}

/// Of two owners, root and "unchanged" exist; anything else is said to be done.
fn chown(user: u32) -> Vec<sock_filter> {
    vec![
        load(ARGUMENTS + 8 * user + LOW_HALF),
        jump(0, 1, 0),
        jump(UNCHANGED, 0, 3),
        load(ARGUMENTS + 8 * (user + 1) + LOW_HALF),
        jump(0, 2, 0),
        jump(UNCHANGED, 1, 0),
        give(SUCCEED),
        give(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Devices are said to be made, but for the number 0: that is how overlays, of a container inside too, mark what was
/// removed, and the kernel lets everyone make it.
fn mknod(mode: u32) -> Vec<sock_filter> {
    vec![
        load(ARGUMENTS + 8 * mode + LOW_HALF),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, libc::S_IFMT),
        jump(libc::S_IFCHR, 1, 0),
        jump(libc::S_IFBLK, 0, 2),
        load(ARGUMENTS + 8 * (mode + 1) + LOW_HALF),
        jump(0, 0, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(SUCCEED),
    ]
}

/// Where the lower four of the eight bytes of an argument are.
const LOW_HALF: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn give(verdict: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict)
}

/// Skips `equal` instructions if what was loaded is `value`, else `other` ones.
fn jump(value: u32, equal: u8, other: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, equal, other, value)
}

fn skip_unless_equal(value: u32, skipped: u8) -> sock_filter {
    jump(value, 0, skipped)
}

fn skip_if_below(value: u32, skipped: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, skipped, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes of the machine have 16 bits"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const ASK: u32 = libc::SECCOMP_RET_USER_NOTIF;

    /// What the kernel would do with such a call: a machine with one register.
    fn verdict(arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number.to_ne_bytes(), arch.to_ne_bytes()].concat();
        data.extend(0_u64.to_ne_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let program = program(&[libc::SYS_getuid, libc::SYS_setresuid]);
        let (mut at, mut register) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let mut skip = |condition| at += usize::from(if condition { jt } else { jf });
            match u32::from(code) {
                0x20 => register = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                0x15 => skip(register == k),
                0x35 => skip(register >= k),
                0x54 => register &= k,
                0x06 => return k,
                other => panic!("the program has no instruction {other:#x}"),
            }
        }
    }

    fn native(number: c_long, arguments: [u64; 6]) -> u32 {
        verdict(MACHINE, u32::try_from(number).unwrap(), arguments)
    }

    #[test]
    fn only_changes_to_owners_that_do_not_exist_are_pretended() {
        let unchanged = u64::MAX;
        let cases = [
            (0, 0, ALLOW),
            (unchanged, 0, ALLOW),
            (0, unchanged, ALLOW),
            (u64::from(u32::MAX), unchanged, ALLOW),
            (33, 0, SUCCEED),
            (0, 33, SUCCEED),
            (33, 33, SUCCEED),
            (unchanged, 33, SUCCEED),
            (33, unchanged, SUCCEED),
        ];
        for (user, group, expected) in cases {
            assert_eq!(native(libc::SYS_fchown, [3, user, group, 7, 7, 7]), expected, "{user} {group}");
            assert_eq!(native(libc::SYS_fchownat, [3, 7, user, group, 7, 7]), expected, "{user} {group}");
            #[cfg(target_arch = "x86_64")]
            for number in [libc::SYS_chown, libc::SYS_lchown] {
                assert_eq!(native(number, [3, user, group, 7, 7, 7]), expected, "{user} {group}");
            }
        }
    }

    #[test]
    fn only_devices_are_pretended_to_be_made() {
        for (kind, expected) in [
            (libc::S_IFCHR, SUCCEED),
            (libc::S_IFBLK, SUCCEED),
            (libc::S_IFIFO, ALLOW),
            (libc::S_IFREG, ALLOW),
            (0, ALLOW),
        ] {
            let mode = u64::from(kind | 0o644);

            assert_eq!(native(libc::SYS_mknodat, [3, 0, mode, 0x501, 0, 0]), expected, "{kind:o}");
            assert_eq!(native(libc::SYS_mknodat, [3, 0, mode, 0, 0, 0]), ALLOW, "{kind:o}");
        }
    }

    #[test]
    fn waiting_ends_when_nobody_is_left_even_if_the_kernel_does_not_say_so() {
        use std::cell::Cell;
        let (reader, mut writer) = io::pipe().unwrap();
        let soon = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let asked = Cell::new(0);
        let left_twice = || asked.replace(asked.get() + 1) < 2;

        assert!(!is_readable(&reader, soon, left_twice).unwrap());
        assert_eq!(asked.get(), 3);
        io::Write::write_all(&mut writer, &[0]).unwrap();
        assert!(is_readable(&reader, soon, || false).unwrap());
        io::Read::read_exact(&mut &reader, &mut [0]).unwrap();
        drop(writer);
        assert!(!is_readable(&reader, soon, || true).unwrap());
    }

    #[test]
    fn a_process_without_the_filter_is_not_taken_for_one_with_it() {
        assert!(!is_installed());
    }

    #[test]
    fn calls_that_are_to_be_answered_wait_and_all_others_go_to_the_kernel() {
        assert_eq!(native(libc::SYS_getuid, [0; 6]), ASK);
        assert_eq!(native(libc::SYS_setresuid, [33; 6]), ASK);
        for number in [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_geteuid] {
            assert_eq!(native(number, [33; 6]), ALLOW, "{number}");
        }
    }

    #[test]
    fn the_numbers_of_other_machines_are_not_taken_for_our_own() {
        let number = u32::try_from(libc::SYS_fchown).unwrap();

        assert_eq!(verdict(MACHINE, number, [33; 6]), SUCCEED);
        assert_eq!(verdict(0x4000_0003, number, [33; 6]), ALLOW);
        assert_eq!(verdict(MACHINE, number | FOREIGN_NUMBERS, [33; 6]), ALLOW);
    }
}
