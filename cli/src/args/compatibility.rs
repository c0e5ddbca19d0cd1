//! Holds the table of flags in `docs/COMPATIBILITY.md` against the parser.

use super::Cli;
use std::collections::BTreeSet;

/// Flags of a run that other programs do not have, which the page explains below its tables.
const ONLY_HERE: [&str; 4] = ["--block-cache", "--layer-engine", "--library", "--help"];

/// A row of a table: its flags, and what the last column says.
struct Row {
    flags: Vec<String>,
    verdict: String,
}

/// The rows of the table below `heading`.
fn rows(page: &str, heading: &str) -> Vec<Row> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect("the page has the section");
    let table = section.lines().filter(|line| line.starts_with('|')).skip(2);
    table
        .map(|line| {
            let cells: Vec<_> = line.replace("\\|", "/").trim_matches('|').split('|').map(str::to_owned).collect();
            Row { flags: flags(&cells[0]), verdict: cells.last().expect("a row has cells").trim().to_owned() }
        })
        .collect()
}

/// The flags in a cell: words between backquotes that begin with a dash, and the letters of a short one.
fn flags(cell: &str) -> Vec<String> {
    let quoted = cell.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|text| text.split([' ', '[', '/', ','])).map(str::to_owned);
    words.filter(|word| word.starts_with('-')).collect()
}

/// The flags of a command, short and long and by every name.
fn parsed(command: &str) -> BTreeSet<String> {
    let cli = Cli::whole();
    let words = command.split(' ');
    let command = words.fold(&cli, |command, word| command.find_subcommand(word).expect("the command exists"));
    let mut flags = BTreeSet::new();
    for argument in command.get_arguments() {
        flags
            .extend(argument.get_long_and_visible_aliases().unwrap_or_default().iter().map(|name| format!("--{name}")));
        flags.extend(argument.get_all_aliases().unwrap_or_default().iter().map(|name| format!("--{name}")));
        flags.extend(argument.get_short().map(|letter| format!("-{letter}")));
    }
    flags
}

#[test]
fn the_page_and_the_parser_have_the_same_flags() {
    let page = include_str!("../../../docs/COMPATIBILITY.md");
    let rows = rows(page, "Flags of `exec`, `shell`, `run`");
    let commands = ["exec", "shell", "run", "test", "instance start"];
    let parsed: BTreeSet<_> = commands.into_iter().flat_map(parsed).collect();

    let mut wrong = Vec::new();
    for row in &rows {
        for flag in &row.flags {
            match (row.verdict.starts_with("not yet"), parsed.contains(flag)) {
                (true, true) => wrong.push(format!("{flag} exists, and its row says {}", row.verdict)),
                (false, false) => wrong.push(format!("{flag} does not exist, and its row says {}", row.verdict)),
                _ => {}
            }
        }
    }
    let listed: BTreeSet<_> = rows.iter().flat_map(|row| &row.flags).collect();
    let unlisted = parsed.iter().filter(|flag| !listed.contains(flag) && flag.as_str() != "-h");
    wrong.extend(unlisted.filter(|flag| !ONLY_HERE.contains(&flag.as_str())).map(|flag| format!("{flag} has no row")));

    assert!(rows.len() > 40, "the table has shrunk to {} rows", rows.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_and_the_parser_have_the_same_flags_of_builds() {
    let page = include_str!("../../../docs/COMPATIBILITY.md");
    let (rows, parsed) = (rows(page, "Flags of `build`"), parsed("build"));

    let mut wrong = Vec::new();
    for row in &rows {
        let is_missing = row.verdict.starts_with("not yet");
        let misplaced = row.flags.iter().filter(|flag| parsed.contains(*flag) == is_missing);
        wrong.extend(misplaced.map(|flag| format!("{flag}: its row says {}", row.verdict)));
    }
    let listed: BTreeSet<_> = rows.iter().flat_map(|row| &row.flags).map(String::as_str).collect();
    let own = ["-h", "--help", "--as-it-is", "--when-told"];
    let unlisted = parsed.iter().filter(|flag| !listed.contains(flag.as_str()) && !own.contains(&flag.as_str()));
    wrong.extend(unlisted.map(|flag| format!("{flag} has no row")));

    assert!(rows.len() > 15, "the table has shrunk to {} rows", rows.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_names_its_flags_between_backquotes() {
    let expected = ["-p", "--pid", "--no-pid"];
    assert_eq!(flags(" `-p --pid`, `--no-pid` and -x "), expected);
    assert_eq!(flags("`-o --overlay P[:ro]` (list)"), ["-o", "--overlay"]);
    assert_eq!(flags("`--env K=V[,K=V]`, `MEMORY`"), ["--env"]);
}
