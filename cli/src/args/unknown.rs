//! What is said of words that stand where a command or a flag is expected, and are none.

use super::Cli;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::{OsStr, OsString};

/// Commands of apptainer that siphon does not have, and what to do instead.
pub(super) const ABSENT: [(&str, &str); 12] = [
    ("sign", "siphon makes no signatures; a digest that comes another way tells whether an image is what it was"),
    ("verify", "siphon checks no signatures; pull checks the digests of registries and libraries"),
    ("key", "siphon makes and checks no signatures, so that there are no keys to keep"),
    ("keyserver", "siphon makes and checks no signatures, so that there are no keys to look for"),
    ("search", "siphon does not search libraries and registries; they have web pages for that"),
    ("delete", "siphon deletes nothing in libraries and registries; other programs, such as skopeo, do"),
    (
        "remote",
        "there are no endpoints to choose from; name a library with --library, and log in with: siphon registry login",
    ),
    (
        "capability",
        "siphon has no rights to give away; a container has those of its caller, or of root with --fakeroot",
    ),
    (
        "config",
        "there is no configuration file; ids for --fakeroot are given out with: usermod --add-subuids, --add-subgids",
    ),
    ("checkpoint", "siphon makes no checkpoints; DMTCP works inside a container as it does outside"),
    ("plugin", "plugins are Go code, which siphon cannot load"),
    ("oci", "bundles are run by runc or crun; a layout or an archive is an image as it is: siphon run oci:DIRECTORY"),
];

/// How alike two names have to be, from 0 to 1 (Jaro), for one to be taken for the other; as for the names of commands.
const ALIKE: f64 = 0.7;

/// What is wrong with a command line, with words of ours where it asks for a command of apptainer's.
pub(super) fn explain(error: clap::Error, words: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let is_first = words.iter().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    match ABSENT.iter().find(|(absent, _)| absent == name) {
        Some((name, instead)) if is_first.is_some_and(|word| word == name) => {
            let message = format!("siphon has no command {name}: {instead}");
            Cli::command().error(ErrorKind::InvalidSubcommand, message)
        }
        _ => error,
    }
}

/// The error for an option of a run that there is not.
pub(super) fn flag(word: &OsStr) -> clap::Error {
    let meant =
        alike(word).map_or_else(|| "options stand before the image".to_owned(), |flag| format!("did you mean {flag}?"));
    let message = format!("unknown flag: {}; {meant}", word.display());
    Cli::command().error(ErrorKind::UnknownArgument, message)
}

/// The flag of a run whose name is most like a word's.
fn alike(word: &OsStr) -> Option<String> {
    let name = word.to_str()?.strip_prefix("--")?.split('=').next()?.to_owned();
    let command = Cli::whole();
    let shell = command.find_subcommand("shell")?;
    let flags = shell.get_arguments().filter(|argument| !argument.is_hide_set()).filter_map(clap::Arg::get_long);
    let scored = flags.map(|flag| (strsim::jaro(&name, flag), flag)).filter(|(score, _)| *score > ALIKE);
    let (_, flag) = scored.max_by(|one, other| one.0.total_cmp(&other.0))?;
    Some(format!("--{flag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_that_was_meant_is_named() {
        for (typed, meant) in [("--bnd", "--bind"), ("--writeable=true", "--writable"), ("--no-hom", "--no-home")] {
            assert!(flag(typed.as_ref()).to_string().contains(&format!("did you mean {meant}?")), "{typed}");
        }
        assert!(!flag("--quite-another".as_ref()).to_string().contains("did you mean"));
        assert!(!flag("-Q".as_ref()).to_string().contains("did you mean"));
    }

    #[test]
    fn a_command_of_apptainer_that_siphon_lacks_is_refused_with_what_to_do() {
        let said = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            super::super::booleans::read(&words).map_err(|error| explain(error, &words)).unwrap_err().to_string()
        };

        assert!(said("siphon verify a.sif").contains("siphon checks no signatures"));
        assert!(said("siphon -d oci run x").contains("runc or crun"));
        assert!(said("siphon exce a.sif").contains("'exec'"));
        assert!(said("siphon instance sign").contains("unrecognized subcommand"));
    }

    #[test]
    fn no_command_is_absent_that_exists() {
        let command = Cli::whole();

        assert!(ABSENT.iter().all(|(name, _)| command.find_subcommand(name).is_none()));
    }
}
