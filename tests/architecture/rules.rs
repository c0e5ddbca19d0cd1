//! What no module may do. Each rule gives a line for every place where it is broken.

use super::sources::{CRATES, Modules, NamedPath};
use super::table::Table;
use std::collections::{BTreeMap, BTreeSet};

/// Names that only some modules may use: the beginnings of paths, who may, and why.
struct Reserved {
    paths: &'static [&'static str],
    /// Modules that may, all others may not. With `forbidden_in` set, only those may not.
    allowed_in: &'static [&'static str],
    forbidden_in: &'static [&'static str],
    why: &'static str,
}

const RESERVED: &[Reserved] = &[
    Reserved {
        paths: &["tokio", "reqwest", "rustls"],
        allowed_in: &["fsd::source"],
        forbidden_in: &[],
        why: "only fsd::source talks to the network",
    },
    Reserved {
        paths: &["std::net", "std::env", "std::time::SystemTime", "std::time::Instant", "SystemTime", "Instant"],
        allowed_in: &[],
        forbidden_in: &["image", "overlay"],
        why: "image and overlay know no network, environment or clock",
    },
    Reserved {
        paths: &["std::fs", "std::net", "std::process", "std::env", "std::os::fd", "nix", "rustix", "libc"],
        allowed_in: &[],
        forbidden_in: &["cli::plan"],
        why: "a plan is made without system calls",
    },
    Reserved {
        paths: &[
            "print!",
            "println!",
            "eprint!",
            "eprintln!",
            "std::io::stdout",
            "std::io::stderr",
            "io::stdout",
            "io::stderr",
        ],
        // sys names the streams as descriptors, to point a daemon's at its log.
        allowed_in: &["cli::report", "fsd::sys"],
        forbidden_in: &[],
        why: "only cli::report prints",
    },
];

/// All violations of the table and the rules, one line each.
pub(crate) fn violations(table: &Table, modules: &Modules) -> Vec<String> {
    let mut found = unlisted(table, modules);
    found.extend(ungranted(table, modules));
    found.extend(upward(table));
    found.extend(cycles(table));
    found.extend(reserved(modules));
    found
}

/// The table and the code have the same modules.
fn unlisted(table: &Table, modules: &Modules) -> Vec<String> {
    let code = modules.keys().filter(|name| name.contains("::"));
    let missing = code.filter(|name| !table.grants.contains_key(*name)).map(|name| format!("{name} has no row"));
    let gone = table.grants.keys().filter(|name| !modules.contains_key(*name));
    missing.chain(gone.map(|name| format!("{name} has a row but no source file"))).collect()
}

/// Every path from one module to another is granted. The crates' root files declare modules and may name all of them.
fn ungranted(table: &Table, modules: &Modules) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (module, paths) in modules.iter().filter(|(module, _)| module.contains("::")) {
        for path in paths.iter().filter(|path| path.len() > 1 && is_crate(&path[0])) {
            let target = path[..2].join("::");
            if target == *module {
                continue;
            }
            if !modules.contains_key(&target) {
                found.insert(format!("{module} names {}, which is in no module", path.join("::")));
            } else if !table.allows(module, &target) {
                found.insert(format!("{module} names {}, which the table does not grant", path.join("::")));
            }
        }
    }
    found.into_iter().collect()
}

/// The table grants nothing to a crate from one above it.
fn upward(table: &Table) -> Vec<String> {
    let rank = |name: &str| CRATES.iter().position(|(own, ..)| Some(*own) == name.split("::").next());
    let edges = table.grants.iter().flat_map(|(module, grants)| grants.iter().map(move |grant| (module, grant)));
    edges
        .filter(|(module, grant)| rank(grant) > rank(module))
        .map(|(module, grant)| format!("the table grants {grant} to {module}, which is below it"))
        .collect()
}

/// The table has no cycle; as the code stays within the table, neither has the code.
fn cycles(table: &Table) -> Vec<String> {
    let mut open: BTreeMap<_, _> =
        table.grants.iter().map(|(module, grants)| (module.clone(), grants.clone())).collect();
    loop {
        let free: Vec<_> = open
            .iter()
            .filter(|(module, grants)| !open.keys().any(|other| other != *module && reaches(grants, module, other)))
            .map(|(module, _)| module.clone())
            .collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|module| drop(open.remove(module)));
    }
    if open.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "these modules may import each other in a circle: {}",
        open.into_keys().collect::<Vec<_>>().join(", ")
    )]
}

fn reaches(grants: &BTreeSet<String>, module: &str, other: &str) -> bool {
    let other_crate = other.split("::").next().unwrap_or_default();
    // A grant of the whole crate that a module is in would be a grant of itself.
    grants.contains(other) || (grants.contains(other_crate) && !module.starts_with(&format!("{other_crate}::")))
}

fn reserved(modules: &Modules) -> Vec<String> {
    let mut found = Vec::new();
    for (module, paths) in modules {
        for rule in RESERVED.iter().filter(|rule| applies(rule, module)) {
            let broken = paths.iter().filter(|path| rule.paths.iter().any(|name| begins_with(path, name)));
            found.extend(broken.map(|path| format!("{module} names {}: {}", path.join("::"), rule.why)));
        }
    }
    found
}

fn applies(rule: &Reserved, module: &str) -> bool {
    let within = |names: &[&str]| names.iter().any(|name| module == *name || module.starts_with(&format!("{name}::")));
    if rule.forbidden_in.is_empty() { !within(rule.allowed_in) } else { within(rule.forbidden_in) }
}

/// Whether `path` is `name` or below it. One segment alone is a name only as the head of a longer path or a macro,
/// since a field or a variable may be called the same.
fn begins_with(path: &NamedPath, name: &str) -> bool {
    let name: Vec<_> = name.split("::").collect();
    let matches = path.len() >= name.len() && path.iter().zip(&name).all(|(segment, wanted)| segment == wanted);
    matches && (name.len() > 1 || path.len() > 1 || name[0].ends_with('!'))
}

fn is_crate(name: &str) -> bool {
    CRATES.iter().any(|(own, ..)| own == &name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::sources::add_source;

    const TABLE: &str = "| module | what | may import |\n|---|---|---|\n| `image::tree` | | - |\n\
        | `image::squashfs` | | `tree` |\n| `fsd::fs` | | `image` |\n| `fsd::fuse` | | `fs` |\n\
        | `cli::plan` | | - |\n| `cli::report` | | - |\n";

    /// The violations of a made-up code base, which is in order but for `text` in `module`.
    fn found_in(module: &str, text: &str) -> Vec<String> {
        let table = Table::parse(TABLE).unwrap();
        let mut modules = Modules::new();
        for name in table.grants.keys() {
            add_source("", &segments(name), &mut modules);
        }
        add_source(text, &segments(module), &mut modules);
        violations(&table, &modules)
    }

    fn segments(module: &str) -> Vec<String> {
        module.split("::").map(str::to_owned).collect()
    }

    #[test]
    fn code_that_keeps_to_the_table_passes() {
        assert!(found_in("image::squashfs", "use crate::tree::Tree; use super::tree;").is_empty());
        assert!(found_in("fsd::fs", "use siphon_image::squashfs::reader;").is_empty());
        assert!(found_in("fsd::fuse", "use crate::fs::Handle;").is_empty());
        assert!(found_in("cli::report", "fn f() { println!(\"x\"); }").is_empty());
    }

    #[test]
    fn each_rule_can_fail() {
        let cases = [
            ("image::tree", "use crate::squashfs::Reader;", "does not grant"),
            ("image::squashfs::reader", "fn f() { crate::surprise::g() }", "in no module"),
            ("fsd::fs", "use super::fuse;", "does not grant"),
            ("image::squashfs", "use siphon_fsd::fs;", "does not grant"),
            ("image::new", "", "has no row"),
            ("fsd::fs", "async fn f() { tokio::time::sleep(d).await }", "network"),
            ("fsd", "use reqwest::Client;", "network"),
            ("image::tree", "use std::net::TcpStream;", "no network"),
            ("image::tree", "use std::{env, io};", "no network"),
            ("image::squashfs::deep", "use std::time::{Duration, Instant};", "clock"),
            ("cli::plan", "use std::fs;", "system calls"),
            ("cli::plan", "fn f() { rustix::process::getuid(); }", "system calls"),
            ("fsd::fs", "fn f() { eprintln!(\"x\"); }", "prints"),
            ("cli::plan", "use std::io; fn f() { io::stdout(); }", "prints"),
        ];
        for (module, text, expected) in cases {
            let found = found_in(module, text);

            assert!(found.iter().any(|line| line.contains(expected)), "{module}: {text}: {found:?}");
        }
    }

    #[test]
    fn a_row_without_a_module_fails() {
        let table = Table::parse(TABLE).unwrap();

        assert!(violations(&table, &Modules::new()).iter().any(|line| line.contains("no source file")));
    }

    #[test]
    fn a_table_with_a_circle_or_an_upward_grant_fails() {
        let circle = "| module | | may import |\n|---|---|---|\n| `fsd::a` | | `b` |\n| `fsd::b` | | `c` |\n| `fsd::c` | | `a` |\n";
        let upward_grant = "| module | | may import |\n|---|---|---|\n| `image::a` | | `fsd` |\n";

        assert!(cycles(&Table::parse(circle).unwrap())[0].contains("circle"));
        assert_eq!(upward(&Table::parse(upward_grant).unwrap()).len(), 1);
        assert!(cycles(&Table::parse(TABLE).unwrap()).is_empty());
    }
}
