//! Values of flags that are on or off: `--nv=false`, as programs written in Go take them.
//!
//! The help shows such flags without a value, since hardly anyone gives one, so that the command line is read in this
//! way only where it cannot be read in the usual one.

use super::Cli;
use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, FromArgMatches};
use std::ffi::OsString;

/// Reads a command line.
///
/// # Errors
/// What clap says of it.
pub(super) fn read(words: &[OsString]) -> Result<Cli, clap::Error> {
    use clap::Parser;
    let words = super::shorthands::spread(words);
    let error = match Cli::try_parse_from(&words) {
        Err(error) if error.kind() == ErrorKind::TooManyValues => error,
        read => return read,
    };
    match with_values(Cli::whole()).try_get_matches_from(words) {
        Ok(matches) => {
            let mut cli = Cli::from_arg_matches(&matches)?;
            cli.switched_off = switched_off(&matches);
            Ok(cli)
        }
        Err(other) if other.kind() == ErrorKind::ValueValidation => Err(other),
        // What is wrong is something else, which the usual way names better.
        Err(_) => Err(error),
    }
}

/// The command with values allowed for all flags that have none.
fn with_values(command: Command) -> Command {
    let command = command.mut_args(|argument| match argument.get_action() {
        ArgAction::SetTrue => argument
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .value_parser(ValueParser::new(boolean)),
        _ => argument,
    });
    command.mut_subcommands(with_values)
}

/// The words of Go's `strconv.ParseBool`.
fn boolean(word: &str) -> Result<bool, String> {
    match word {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// The flags that were said to be off, by the names of their fields.
fn switched_off(matches: &ArgMatches) -> Vec<String> {
    let is_off = |id: &str| {
        matches.value_source(id) == Some(ValueSource::CommandLine)
            && matches!(matches.try_get_one::<bool>(id), Ok(Some(false)))
    };
    let mut off: Vec<_> = matches.ids().map(|id| id.to_string()).filter(|id| is_off(id)).collect();
    if let Some((_, below)) = matches.subcommand() {
        off.extend(switched_off(below));
    }
    off
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_flag_takes_the_values_that_it_takes_in_go() {
        let Verb::Exec(args) =
            parsed("s --quiet=true exec --nv=false --cleanenv=1 --contain --pid=F a.sif x --nv=false").unwrap().verb
        else {
            panic!("exec is exec")
        };

        assert!(args.flags.cleanenv && args.flags.contain.contain);
        assert!(!args.flags.gpu.nv && !args.flags.namespaces.pid);
        assert_eq!(args.image_and_command, ["a.sif", "x", "--nv=false"]);
        assert_eq!(parsed("s exec --nv=false --cleanenv=1 --pid=F a.sif x").unwrap().switched_off, ["nv", "pid"]);
        assert_eq!(parsed("s exec -e=false -pc=F a.sif x").unwrap().switched_off, ["cleanenv", "contain"]);
        assert!(parsed("s exec -e=maybe a.sif x").is_err());
        assert!(parsed("s exec --nv=maybe a.sif x").is_err());
        assert!(parsed("s exec --nv a.sif x").unwrap().switched_off.is_empty());
    }
}
