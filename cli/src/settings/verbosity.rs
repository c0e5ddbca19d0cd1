//! How much is printed.

use super::Environment;
use crate::args::GlobalFlags;

/// How much is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only.
    Silent,
    /// Warnings too.
    Quiet,
    /// What a user may want to know.
    Normal,
    /// More.
    Verbose,
    /// Everything.
    Debug,
}

/// How much to print: the flags, or `*_DEBUG`, `*_SILENT`, `*_QUIET`, `*_VERBOSE`.
pub fn verbosity(flags: &GlobalFlags, environment: &Environment) -> Verbosity {
    let on = |flag: bool, key: &str| flag || environment.switch(&[key]);
    if on(flags.debug, "DEBUG") {
        Verbosity::Debug
    } else if on(flags.silent, "SILENT") {
        Verbosity::Silent
    } else if on(flags.quiet, "QUIET") {
        Verbosity::Quiet
    } else if on(flags.verbose, "VERBOSE") {
        Verbosity::Verbose
    } else {
        level(environment).unwrap_or(Verbosity::Normal)
    }
}

/// The level that `*_MESSAGELEVEL` gives by its number, from -4 for fatal errors over 1 for INFO to 5.
fn level(environment: &Environment) -> Option<Verbosity> {
    let level: i32 = environment.text(&["MESSAGELEVEL"])?.trim().parse().ok()?;
    Some(match level {
        ..=-3 => Verbosity::Silent,
        -2..=0 => Verbosity::Quiet,
        1 => Verbosity::Normal,
        2..=4 => Verbosity::Verbose,
        5.. => Verbosity::Debug,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_messages_may_be_a_number_and_a_flag_wins_over_it() {
        let mut quiet = GlobalFlags::default();
        quiet.quiet = true;
        let cases = [
            ("-4", Verbosity::Silent),
            ("-1", Verbosity::Quiet),
            ("1", Verbosity::Normal),
            ("3", Verbosity::Verbose),
            ("5", Verbosity::Debug),
            ("x", Verbosity::Normal),
        ];

        for (text, expected) in cases {
            let environment = Environment::made_up(&[("APPTAINER_MESSAGELEVEL", text)]);
            assert_eq!(verbosity(&GlobalFlags::default(), &environment), expected, "{text}");
            assert_eq!(verbosity(&quiet, &environment), Verbosity::Quiet, "{text}");
        }
    }
}
