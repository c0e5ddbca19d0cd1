//! Who each process of a container is, found through its parents.
//!
//! Nobody tells of a new process. The first question of one whose identity is not known goes up to the next ancestor
//! whose is: to what that was when the child was made. A process whose parents have ended before its first question is
//! taken for root.

use super::Identity;
use std::collections::{BTreeMap, VecDeque};

/// More generations than any tree of processes has.
const MAX_GENERATIONS: usize = 1000;
/// As many changes of a process are remembered: a child asks soon after it was made.
const MAX_HISTORY: usize = 16;
/// With so many processes known, those that have ended are forgotten; and again with twice as many as are left then.
const FIRST_SWEEP: usize = 256;

/// What the kernel tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Its id.
    pub(super) id: u32,
    /// Its parent's.
    pub(super) parent: u32,
    /// When it was made, in ticks of the system: with the id it names one process for ever.
    pub(super) made: u64,
}

/// Where to ask for processes, and for the time.
pub(super) trait Kernel {
    /// The process to which this thread belongs; `None` if it has ended.
    fn process(&self, thread: u32) -> Option<Process>;
    /// The present in ticks of the system.
    fn now(&self) -> u64;
}

/// The processes of one container that are not simply root.
#[derive(Debug, Default)]
pub(super) struct Processes {
    known: BTreeMap<u32, Known>,
    next_sweep: usize,
}

#[derive(Debug)]
struct Known {
    made: u64,
    /// Since when it is who; the latest last, and root before the first. Never empty.
    history: VecDeque<(u64, Identity)>,
}

impl Known {
    fn latest(&self) -> Identity {
        self.history.back().map(|(_, identity)| identity.clone()).unwrap_or_default()
    }

    /// Who it was at a time. Of a change within the same tick, what comes after it is taken: programs that run others
    /// as someone else first become that user.
    fn at(&self, time: u64) -> Identity {
        let earlier = self.history.iter().rev().find(|(since, _)| *since <= time);
        earlier.map(|(_, identity)| identity.clone()).unwrap_or_default()
    }
}

impl Processes {
    /// Whether all are root.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Who `process` is.
    pub(super) fn identity(&mut self, process: Process, kernel: &impl Kernel) -> Identity {
        if let Some(known) = self.find(process) {
            return known.latest();
        }
        let (mut child, mut found) = (process, Identity::default());
        for _ in 0..MAX_GENERATIONS {
            let Some(parent) = kernel.process(child.parent).filter(|parent| parent.id != child.id) else { break };
            if let Some(known) = self.find(parent) {
                found = known.at(child.made);
                break;
            }
            child = parent;
        }
        if found != Identity::default() {
            // Its parent may end before it asks again.
            self.insert(process, found.clone(), process.made, kernel);
        }
        found
    }

    /// Notes that `process` is `identity` from now on.
    pub(super) fn change(&mut self, process: Process, identity: Identity, kernel: &impl Kernel) {
        self.insert(process, identity, kernel.now(), kernel);
    }

    fn find(&self, process: Process) -> Option<&Known> {
        self.known.get(&process.id).filter(|known| known.made == process.made)
    }

    fn insert(&mut self, process: Process, identity: Identity, since: u64, kernel: &impl Kernel) {
        self.sweep(kernel);
        if self.find(process).is_none() {
            self.known.insert(process.id, Known { made: process.made, history: VecDeque::new() });
        }
        if let Some(known) = self.known.get_mut(&process.id) {
            if known.history.len() == MAX_HISTORY {
                known.history.pop_front();
            }
            known.history.push_back((since, identity));
        }
    }

    fn sweep(&mut self, kernel: &impl Kernel) {
        if self.known.len() < self.next_sweep.max(FIRST_SWEEP) {
            return;
        }
        self.known.retain(|id, known| kernel.process(*id).is_some_and(|process| process.made == known.made));
        self.next_sweep = 2 * self.known.len();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ids;
    use super::*;
    use std::cell::Cell;

    #[derive(Default)]
    struct Table {
        processes: BTreeMap<u32, Process>,
        now: Cell<u64>,
    }

    impl Table {
        fn add(&mut self, id: u32, parent: u32, made: u64) -> Process {
            let process = Process { id, parent, made };
            self.processes.insert(id, process);
            process
        }
    }

    impl Kernel for Table {
        fn process(&self, thread: u32) -> Option<Process> {
            self.processes.get(&thread).copied()
        }

        fn now(&self) -> u64 {
            self.now.get()
        }
    }

    fn user(id: u32) -> Identity {
        Identity { user: Ids { real: id, effective: id, saved: id, filesystem: id }, ..Identity::default() }
    }

    #[test]
    fn children_are_who_their_parent_was_when_they_were_made() {
        let (mut table, mut processes) = (Table::default(), Processes::default());
        let parent = table.add(10, 1, 100);
        let before = table.add(11, 10, 150);
        let after = table.add(12, 10, 250);
        let grandchild = table.add(13, 12, 260);

        table.now.set(200);
        processes.change(parent, user(42), &table);
        table.now.set(300);
        processes.change(parent, user(43), &table);

        assert_eq!(processes.identity(before, &table), Identity::default());
        assert_eq!(processes.identity(grandchild, &table), user(42));
        assert_eq!(processes.identity(after, &table), user(42));
        assert_eq!(processes.identity(parent, &table), user(43));
    }

    #[test]
    fn a_process_that_was_asked_for_once_is_known_without_its_parent() {
        let (mut table, mut processes) = (Table::default(), Processes::default());
        let parent = table.add(10, 1, 100);
        processes.change(parent, user(42), &table);
        let child = table.add(11, 10, 250);
        processes.identity(child, &table);

        table.processes.remove(&10);
        let orphan = table.add(11, 1, 250);

        assert_eq!(processes.identity(orphan, &table), user(42));
    }

    #[test]
    fn another_process_with_the_same_id_is_not_taken_for_the_first() {
        let (mut table, mut processes) = (Table::default(), Processes::default());
        let first = table.add(10, 1, 100);
        processes.change(first, user(42), &table);

        let second = table.add(10, 1, 500);

        assert_eq!(processes.identity(second, &table), Identity::default());
    }

    #[test]
    fn neither_processes_that_ended_nor_old_changes_pile_up() {
        let (mut table, mut processes) = (Table::default(), Processes::default());
        for id in 1..=10_000 {
            let process = Process { id, parent: 0, made: 1 };
            processes.change(process, user(42), &table);
        }
        assert!(processes.known.len() <= FIRST_SWEEP);

        let process = table.add(7, 1, 100);
        for id in 1..=1000 {
            processes.change(process, user(id), &table);
        }
        assert!(processes.find(process).unwrap().history.len() <= MAX_HISTORY);
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let (mut table, mut processes) = (Table::default(), Processes::default());
        let one = table.add(1, 2, 1);
        table.add(2, 1, 1);
        processes.change(table.add(9, 0, 1), user(42), &table);

        assert_eq!(processes.identity(one, &table), Identity::default());
    }
}
