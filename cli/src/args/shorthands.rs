//! Short options with a value right behind them, such as `-B/data`, `-o=dir` and `-e=false`, as programs written in Go
//! take them.
//!
//! Everything from the image on belongs to the container and may begin with a dash, and where that is so the parser takes
//! a word of short options for the image as soon as one of its characters is none. So such words are spread out before.

use super::Cli;
use clap::{Arg, ArgAction, Command};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The same words, each short option that has a value with it written as the long one.
pub(super) fn spread(words: &[OsString]) -> Vec<OsString> {
    // Most command lines have none, and are not read twice.
    if !words.iter().any(|word| matches!(word.as_bytes(), [b'-', first, _, ..] if *first != b'-')) {
        return words.to_vec();
    }
    spread_by(words, &Cli::whole())
}

fn spread_by(words: &[OsString], cli: &Command) -> Vec<OsString> {
    let mut command = cli;
    let mut out: Vec<OsString> = words.first().cloned().into_iter().collect();
    let mut rest = words.get(1..).unwrap_or_default().iter();
    while let Some(word) = rest.next() {
        let (spread, wants_value) = match word.as_bytes() {
            [b'-', b'-'] => {
                out.push(word.clone());
                break;
            }
            [b'-', b'-', name @ ..] => (None, !name.contains(&b'=') && long(command, name).is_some_and(takes_value)),
            [b'-', letters @ ..] if !letters.is_empty() => match cluster(command, letters) {
                Some((spread, wants_value)) => (Some(spread), wants_value),
                None => (None, false),
            },
            _ => {
                out.push(word.clone());
                match command.find_subcommand(word) {
                    Some(below) => command = below,
                    // The rest is the container's.
                    None if command.get_positionals().any(Arg::is_trailing_var_arg_set) => break,
                    None => {}
                }
                continue;
            }
        };
        out.extend(spread.unwrap_or_else(|| vec![word.clone()]));
        if wants_value {
            out.extend(rest.next().cloned());
        }
    }
    out.extend(rest.cloned());
    out
}

/// The options in a word of short ones, and whether the last takes the next word; `None` if one of them is unknown.
fn cluster(command: &Command, mut letters: &[u8]) -> Option<(Vec<OsString>, bool)> {
    let mut out = Vec::new();
    while let [letter, rest @ ..] = letters {
        let argument = short(command, *letter)?;
        match rest {
            [b'=', value @ ..] if !value.is_empty() => {
                out.push(with_value(argument, value)?);
                return Some((out, false));
            }
            value if takes_value(argument) && !value.is_empty() => {
                out.push(with_value(argument, value)?);
                return Some((out, false));
            }
            _ => out.push(OsString::from(format!("-{}", char::from(*letter)))),
        }
        if takes_value(argument) {
            return Some((out, true));
        }
        letters = rest;
    }
    Some((out, false))
}

fn with_value(argument: &Arg, value: &[u8]) -> Option<OsString> {
    let name = argument.get_long()?;
    Some(OsString::from_vec([b"--", name.as_bytes(), b"=", value].concat()))
}

fn short(command: &Command, letter: u8) -> Option<&Arg> {
    command.get_arguments().find(|argument| argument.get_short() == Some(char::from(letter)))
}

fn long<'a>(command: &'a Command, name: &[u8]) -> Option<&'a Arg> {
    let name = OsStr::from_bytes(name).to_str()?;
    command.get_arguments().find(|argument| {
        argument.get_long() == Some(name) || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_line(line: &str) -> String {
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        spread(&words).iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_value_behind_a_short_option_is_its_value() {
        let cases = [
            ("s exec -B/a:/b a.sif ls", "s exec --bind=/a:/b a.sif ls"),
            ("s exec -B=/a a.sif ls", "s exec --bind=/a a.sif ls"),
            ("s exec -e=false a.sif ls", "s exec --cleanenv=false a.sif ls"),
            ("s exec -ec=false a.sif ls", "s exec -e --contain=false a.sif ls"),
            ("s exec -eB/a -c a.sif ls", "s exec -e --bind=/a -c a.sif ls"),
            ("s -d=false exec a.sif ls", "s --debug=false exec a.sif ls"),
            ("s inspect -l=false a.sif", "s inspect --labels=false a.sif"),
            ("s shell -s/bin/zsh a.sif", "s shell --shell=/bin/zsh a.sif"),
        ];

        for (line, expected) in cases {
            assert_eq!(spread_line(line), expected);
        }
    }

    #[test]
    fn other_words_stay_as_they_are() {
        for line in [
            "s exec -eB /a a.sif ls",
            "s exec --bind -c=false a.sif ls",
            "s exec -B -c=false a.sif ls",
            "s exec a.sif ls -e=false",
            "s exec -y=false a.sif ls",
            "s exec -- -e=false ls",
            "s exec -e= a.sif",
            "s",
        ] {
            let expected = if line.contains("-eB") { line.replace("-eB", "-e -B") } else { line.to_owned() };
            assert_eq!(spread_line(line), expected);
        }
    }
}
