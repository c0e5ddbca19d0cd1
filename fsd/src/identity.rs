//! Users and groups that exist only by name: what the kernel would say of them to a program that cannot have any.
//!
//! In a container where root is the only id, no program can become another user. Package managers and services do, and
//! check that they did. The calls by which they do and check are answered here: each process has an identity, which
//! its children take over, and which follows the kernel's rules, so that privileges that were dropped stay dropped. It
//! is nothing but what these calls say: files belong to root, and root's permissions are what counts.
//!
//! ```text
//! a process of the container -- setresuid(42, 42, 42) --> kernel --> listener --> supervision -> processes -> Identity
//! ```
//!
//! Not here: changes of owners, which [`crate::sys::seccomp`] has the kernel itself pretend; and setuid programs, which
//! do not get root's identity back.

mod processes;
mod supervision;

pub use supervision::supervise;

use nix::errno::Errno;
use nix::libc::{self, c_long};

/// "Leave as it is", for an id.
const UNCHANGED: u32 = u32::MAX;
/// The kernel's own bound (`NGROUPS_MAX`).
const MAX_GROUPS: u32 = 65536;

/// A call that asks for ids or changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    User(Which),
    Group(Which),
    AllUsers,
    AllGroups,
    Groups,
    SetUser,
    SetGroup,
    SetRealAndEffectiveUser,
    SetRealAndEffectiveGroup,
    SetAllUsers,
    SetAllGroups,
    SetFilesystemUser,
    SetFilesystemGroup,
    SetGroups,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Real,
    Effective,
}

const QUESTIONS: [(c_long, Question); 16] = [
    (libc::SYS_getuid, Question::User(Which::Real)),
    (libc::SYS_geteuid, Question::User(Which::Effective)),
    (libc::SYS_getgid, Question::Group(Which::Real)),
    (libc::SYS_getegid, Question::Group(Which::Effective)),
    (libc::SYS_getresuid, Question::AllUsers),
    (libc::SYS_getresgid, Question::AllGroups),
    (libc::SYS_getgroups, Question::Groups),
    (libc::SYS_setuid, Question::SetUser),
    (libc::SYS_setgid, Question::SetGroup),
    (libc::SYS_setreuid, Question::SetRealAndEffectiveUser),
    (libc::SYS_setregid, Question::SetRealAndEffectiveGroup),
    (libc::SYS_setresuid, Question::SetAllUsers),
    (libc::SYS_setresgid, Question::SetAllGroups),
    (libc::SYS_setfsuid, Question::SetFilesystemUser),
    (libc::SYS_setfsgid, Question::SetFilesystemGroup),
    (libc::SYS_setgroups, Question::SetGroups),
];

/// The numbers of the system calls that are answered here.
pub fn answered_calls() -> Vec<c_long> {
    QUESTIONS.iter().map(|(number, _)| *number).collect()
}

/// The memory of the process that makes a call.
trait Memory {
    /// Reads `words` numbers of 32 bits from `address` on.
    fn read(&self, address: u64, words: u32) -> Result<Vec<u32>, Errno>;
    /// Writes them.
    fn write(&self, address: u64, words: &[u32]) -> Result<(), Errno>;
}

/// The ids of one kind that a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Ids {
    real: u32,
    effective: u32,
    saved: u32,
    filesystem: u32,
}

impl Ids {
    fn which(&self, which: Which) -> u32 {
        match which {
            Which::Real => self.real,
            Which::Effective => self.effective,
        }
    }

    fn has(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// `setuid(2)`.
    fn set(&mut self, id: u32, privileged: bool) -> Result<(), Errno> {
        match id {
            UNCHANGED => return Err(Errno::EINVAL),
            _ if privileged => *self = Self { real: id, effective: id, saved: id, filesystem: id },
            _ if id == self.real || id == self.saved => (self.effective, self.filesystem) = (id, id),
            _ => return Err(Errno::EPERM),
        }
        Ok(())
    }

    /// `setreuid(2)`.
    fn set_real_and_effective(&mut self, real: u32, effective: u32, privileged: bool) -> Result<(), Errno> {
        let old = *self;
        let real_fits = real == UNCHANGED || real == old.real || real == old.effective;
        let effective_fits = effective == UNCHANGED || old.has(effective);
        if !(privileged || (real_fits && effective_fits)) {
            return Err(Errno::EPERM);
        }
        self.real = changed(old.real, real);
        self.effective = changed(old.effective, effective);
        if real != UNCHANGED || (effective != UNCHANGED && effective != old.real) {
            self.saved = self.effective;
        }
        self.filesystem = self.effective;
        Ok(())
    }

    /// `setresuid(2)`.
    fn set_all(&mut self, new: [u32; 3], privileged: bool) -> Result<(), Errno> {
        let old = *self;
        if !(privileged || new.iter().all(|id| *id == UNCHANGED || old.has(*id))) {
            return Err(Errno::EPERM);
        }
        let [real, effective, saved] = new;
        self.real = changed(old.real, real);
        self.effective = changed(old.effective, effective);
        self.saved = changed(old.saved, saved);
        self.filesystem = self.effective;
        Ok(())
    }

    /// `setfsuid(2)`, which says what was before and never fails.
    fn set_filesystem(&mut self, id: u32, privileged: bool) -> u32 {
        let old = self.filesystem;
        if id != UNCHANGED && (privileged || self.has(id) || id == old) {
            self.filesystem = id;
        }
        old
    }
}

fn changed(old: u32, new: u32) -> u32 {
    if new == UNCHANGED { old } else { new }
}

/// Who a process is by its own words. Root at first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    user: Ids,
    group: Ids,
    groups: Vec<u32>,
}

impl Default for Identity {
    fn default() -> Self {
        Self { user: Ids::default(), group: Ids::default(), groups: vec![0] }
    }
}

impl Identity {
    /// Answers, and becomes what the call makes of it.
    fn answer(&mut self, question: Question, arguments: [u64; 6], memory: &dyn Memory) -> Result<i64, Errno> {
        let privileged = self.user.effective == 0;
        let id = |index: usize| low_half(arguments[index]);
        match question {
            Question::User(which) => return Ok(self.user.which(which).into()),
            Question::Group(which) => return Ok(self.group.which(which).into()),
            Question::AllUsers => write_all(self.user, arguments, memory)?,
            Question::AllGroups => write_all(self.group, arguments, memory)?,
            Question::Groups => return self.list_groups(id(0), arguments[1], memory),
            Question::SetUser => self.user.set(id(0), privileged)?,
            Question::SetGroup => self.group.set(id(0), privileged)?,
            Question::SetRealAndEffectiveUser => self.user.set_real_and_effective(id(0), id(1), privileged)?,
            Question::SetRealAndEffectiveGroup => self.group.set_real_and_effective(id(0), id(1), privileged)?,
            Question::SetAllUsers => self.user.set_all([id(0), id(1), id(2)], privileged)?,
            Question::SetAllGroups => self.group.set_all([id(0), id(1), id(2)], privileged)?,
            Question::SetFilesystemUser => return Ok(self.user.set_filesystem(id(0), privileged).into()),
            Question::SetFilesystemGroup => return Ok(self.group.set_filesystem(id(0), privileged).into()),
            Question::SetGroups if !privileged => return Err(Errno::EPERM),
            Question::SetGroups if id(0) > MAX_GROUPS => return Err(Errno::EINVAL),
            Question::SetGroups => self.groups = memory.read(arguments[1], id(0))?,
        }
        Ok(0)
    }

    /// `getgroups(2)`: room for none asks for the number.
    fn list_groups(&self, room: u32, address: u64, memory: &dyn Memory) -> Result<i64, Errno> {
        let count = u32::try_from(self.groups.len()).map_err(|_| Errno::EINVAL)?;
        // The number is signed for the kernel.
        match room {
            0 => {}
            _ if room < count || i32::try_from(room).is_err() => return Err(Errno::EINVAL),
            _ => memory.write(address, &self.groups)?,
        }
        Ok(count.into())
    }
}

fn write_all(ids: Ids, addresses: [u64; 6], memory: &dyn Memory) -> Result<(), Errno> {
    [ids.real, ids.effective, ids.saved]
        .iter()
        .zip(addresses)
        .try_for_each(|(id, address)| memory.write(address, &[*id]))
}

/// Ids are 32 bits wide; what a register holds above them means nothing.
fn low_half(argument: u64) -> u32 {
    u32::try_from(argument & u64::from(u32::MAX)).expect("the upper half was masked out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// Words by address.
    #[derive(Default)]
    struct Words(RefCell<BTreeMap<u64, u32>>);

    impl Memory for Words {
        fn read(&self, address: u64, words: u32) -> Result<Vec<u32>, Errno> {
            let memory = self.0.borrow();
            (0..u64::from(words)).map(|at| memory.get(&(address + 4 * at)).copied().ok_or(Errno::EFAULT)).collect()
        }

        fn write(&self, address: u64, words: &[u32]) -> Result<(), Errno> {
            let placed = words.iter().zip(0..).map(|(word, at)| (address + 4 * at, *word));
            self.0.borrow_mut().extend(placed);
            Ok(())
        }
    }

    fn ask(identity: &mut Identity, question: Question, arguments: &[u64]) -> Result<i64, Errno> {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        identity.answer(question, all, &Words::default())
    }

    const UNCHANGED: u64 = u32::MAX as u64;

    /// What apt does and checks before it lets anything come over the network.
    #[test]
    fn who_drops_all_privileges_cannot_take_them_up_again() {
        let (mut process, memory) = (Identity::default(), Words::default());
        memory.write(0x100, &[65534]).unwrap();

        process.answer(Question::SetGroups, [1, 0x100, 0, 0, 0, 0], &memory).unwrap();
        ask(&mut process, Question::SetAllGroups, &[65534, 65534, 65534]).unwrap();
        ask(&mut process, Question::SetAllUsers, &[42, 42, 42]).unwrap();

        assert_eq!(process.answer(Question::Groups, [1, 0x200, 0, 0, 0, 0], &memory), Ok(1));
        assert_eq!(memory.read(0x200, 1).unwrap(), [65534]);
        assert_eq!(ask(&mut process, Question::User(Which::Real), &[]), Ok(42));
        assert_eq!(ask(&mut process, Question::Group(Which::Effective), &[]), Ok(65534));
        for (question, id) in [
            (Question::SetUser, 0),
            (Question::SetGroup, 0),
            (Question::SetAllUsers, 0),
            (Question::SetRealAndEffectiveUser, 0),
            (Question::SetGroups, 0),
        ] {
            assert_eq!(ask(&mut process, question, &[id, UNCHANGED, UNCHANGED]), Err(Errno::EPERM), "{question:?}");
        }
    }

    #[test]
    fn who_keeps_a_saved_id_can_go_back_to_it() {
        let mut process = Identity::default();

        ask(&mut process, Question::SetAllUsers, &[UNCHANGED, 42, UNCHANGED]).unwrap();
        assert_eq!(process.user, Ids { real: 0, effective: 42, saved: 0, filesystem: 42 });
        assert_eq!(ask(&mut process, Question::SetUser, &[7]), Err(Errno::EPERM));
        ask(&mut process, Question::SetUser, &[0]).unwrap();

        assert_eq!(process.user, Ids::default());
    }

    #[test]
    fn setreuid_changes_the_saved_id_as_the_manual_says() {
        let start = Ids { real: 1, effective: 2, saved: 3, filesystem: 2 };
        let unchanged = u32::MAX;
        for (real, effective, expected) in [
            (2, 1, Ok((2, 1, 1))),
            (unchanged, 1, Ok((1, 1, 3))),
            (unchanged, 3, Ok((1, 3, 3))),
            (1, unchanged, Ok((1, 2, 2))),
            (3, unchanged, Err(Errno::EPERM)),
            (unchanged, 4, Err(Errno::EPERM)),
        ] {
            let mut ids = start;

            let result = ids.set_real_and_effective(real, effective, false);

            assert_eq!(result.map(|()| (ids.real, ids.effective, ids.saved)), expected, "{real} {effective}");
        }
    }

    #[test]
    fn setfsuid_says_what_was_before_and_changes_only_what_it_may() {
        let mut process =
            Identity { user: Ids { real: 5, effective: 5, saved: 5, filesystem: 5 }, ..Default::default() };

        assert_eq!(ask(&mut process, Question::SetFilesystemUser, &[6]), Ok(5));
        assert_eq!(ask(&mut process, Question::SetFilesystemUser, &[UNCHANGED]), Ok(5));
    }

    #[test]
    fn counts_and_addresses_of_a_program_are_not_believed() {
        let mut process = Identity::default();

        assert_eq!(ask(&mut process, Question::SetGroups, &[65537, 0]), Err(Errno::EINVAL));
        assert_eq!(ask(&mut process, Question::SetGroups, &[3, 0xdead]), Err(Errno::EFAULT));
        assert_eq!(ask(&mut process, Question::Groups, &[u64::from(u32::MAX), 0x10]), Err(Errno::EINVAL));
        assert_eq!(ask(&mut process, Question::Groups, &[0, 0]), Ok(1));
        assert_eq!(ask(&mut process, Question::SetUser, &[UNCHANGED]), Err(Errno::EINVAL));
    }
}
