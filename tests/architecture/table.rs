//! The import table of `docs/ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};

/// What each module may import: `fsd::fs` -> { `overlay`, `image` }. A whole crate is granted by its name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) grants: BTreeMap<String, BTreeSet<String>>,
}

impl Table {
    /// Takes the rows of the table whose header is `| module | .. | may import |` out of a Markdown page.
    ///
    /// # Errors
    /// If there is no such table or a row has another shape.
    pub(crate) fn parse(page: &str) -> Result<Self, String> {
        let mut table = Self::default();
        let rows = page
            .lines()
            .skip_while(|line| !(line.starts_with("| module |") && line.trim_end().ends_with("may import |")))
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        for row in rows {
            let cells: Vec<_> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
            let [modules, _, grants] = cells[..] else {
                return Err(format!("this row does not have three cells: {row}"));
            };
            for module in quoted(modules) {
                let crate_name = module.split("::").next().unwrap_or_default().to_owned();
                let grants = quoted(grants).into_iter().map(|grant| full_name(&grant, &crate_name)).collect();
                if table.grants.insert(module.clone(), grants).is_some() {
                    return Err(format!("{module} has two rows"));
                }
            }
        }
        if table.grants.is_empty() { Err("there is no import table".to_owned()) } else { Ok(table) }
    }

    /// Whether `module` may name `imported`, both as in the table.
    pub(crate) fn allows(&self, module: &str, imported: &str) -> bool {
        let imported_crate = imported.split("::").next().unwrap_or_default();
        self.grants.get(module).is_some_and(|grants| grants.contains(imported) || grants.contains(imported_crate))
    }
}

/// What stands between backquotes in a cell.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `tree` in a row of `image` is `image::tree`; the name of a crate and a full name are as they are.
fn full_name(grant: &str, crate_name: &str) -> String {
    let is_crate = super::sources::CRATES.iter().any(|(name, ..)| *name == grant);
    if is_crate || grant.contains("::") { grant.to_owned() } else { format!("{crate_name}::{grant}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "text\n\n| module | what | may import |\n|---|---|---|\n| `image::a`, `image::b` | x | `c` |\n\
        | `fsd::fs` | y | `image`, `overlay::view` |\n\nmore";

    #[test]
    fn a_row_grants_its_modules_what_it_lists() {
        let table = Table::parse(PAGE).unwrap();

        assert!(table.allows("image::a", "image::c"));
        assert!(table.allows("image::b", "image::c"));
        assert!(table.allows("fsd::fs", "image::anything"));
        assert!(table.allows("fsd::fs", "overlay::view"));
        assert!(!table.allows("fsd::fs", "overlay::upper"));
        assert!(!table.allows("image::c", "image::a"));
    }

    #[test]
    fn a_page_without_the_table_is_an_error() {
        assert!(Table::parse("| module | may import |\n|---|---|\n").is_err());
        assert!(Table::parse("nothing").is_err());
    }
}
