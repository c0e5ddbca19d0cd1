//! Holds the code to the import table in `docs/ARCHITECTURE.md` and to the rules beneath it.
//!
//! The table is the authority: a module that it does not list, an import that it does not grant, and a row without a
//! module all fail. Sources are parsed, `#[cfg(test)]` items dropped, and every path in the rest looked at, so that a
//! name in a comment or a string does not count and one inside a macro does.

#![expect(clippy::unwrap_used, reason = "a source that cannot be read fails the test, which is what it is for")]

mod architecture {
    pub(crate) mod rules;
    pub(crate) mod sources;
    pub(crate) mod table;
}

use architecture::rules::violations;
use architecture::sources::read_crates;
use architecture::table::Table;
use std::path::Path;

#[test]
fn the_code_imports_only_what_the_architecture_page_grants() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(repository.join("docs/ARCHITECTURE.md")).unwrap();

    let table = Table::parse(&page).unwrap();
    let modules = read_crates(repository);
    let found = violations(&table, &modules);

    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}
