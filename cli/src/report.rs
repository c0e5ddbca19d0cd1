//! What the user sees: results on stdout, messages on stderr, exit codes. The only module that prints.

#![expect(clippy::print_stderr, reason = "this is where output belongs")]

mod progress;
mod text;

pub use progress::Bar;
pub use text::{columns, human_bytes, json_with_tabs, utc};

use crate::settings::Verbosity;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::io::{BufRead, ErrorKind, IsTerminal, Read, Write};
use tracing::level_filters::LevelFilter;

/// Exit code of a command line that cannot be understood, as singularity's.
pub const EXIT_USAGE: u8 = 1;
/// Exit code of `doctor` where something that is needed is missing.
pub const EXIT_UNFIT: u8 = 1;
/// Exit code of anything that fails before or outside the contained program, as singularity's.
pub const EXIT_FATAL: u8 = 255;

/// Prints messages as far as the verbosity lets them through.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    verbosity: Verbosity,
}

impl Report {
    /// A report for one process.
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity }
    }

    /// Lets the log of what happens inside through to stderr, as far as the verbosity asks for it.
    pub fn log(self) {
        let level = match self.verbosity {
            Verbosity::Silent | Verbosity::Quiet | Verbosity::Normal => LevelFilter::OFF,
            Verbosity::Verbose => LevelFilter::INFO,
            Verbosity::Debug => LevelFilter::DEBUG,
        };
        tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    }

    /// The options that have another siphon print as much.
    pub fn as_flags(self) -> &'static [&'static str] {
        match self.verbosity {
            Verbosity::Silent => &["--silent"],
            Verbosity::Quiet => &["--quiet"],
            Verbosity::Normal => &[],
            Verbosity::Verbose => &["--verbose"],
            Verbosity::Debug => &["--debug"],
        }
    }

    /// Whether someone sits before a terminal and wants to know how far things are.
    pub fn is_watched(self) -> bool {
        !self.is_quiet() && std::io::stderr().is_terminal()
    }

    /// Whether INFO messages are left out.
    pub fn is_quiet(self) -> bool {
        self.verbosity < Verbosity::Normal
    }

    /// What a user may want to know.
    pub fn info(self, message: impl std::fmt::Display) {
        if !self.is_quiet() {
            eprintln!("INFO:    {message}");
        }
    }

    /// What a user should look at although the command goes on.
    pub fn warning(self, message: impl std::fmt::Display) {
        if self.verbosity >= Verbosity::Quiet {
            eprintln!("WARNING: {message}");
        }
    }

    /// What ended the command: the error with its causes, and what to do if something can be done.
    pub fn fatal(self, error: &anyhow::Error) {
        eprintln!("FATAL:   {}", text::without_numbers(&format!("{error:#}")));
    }

    /// A progress bar for work on `total_bytes` bytes; silent where stderr is no terminal.
    pub fn progress(self, what: &'static str, total_bytes: u64) -> Bar {
        Bar::new(what, total_bytes, !self.is_quiet())
    }

    /// A line of the result.
    ///
    /// # Errors
    /// If stdout is closed.
    pub fn line(self, line: impl std::fmt::Display) -> std::io::Result<()> {
        writeln!(std::io::stdout(), "{line}")
    }

    /// Asks whether to go on: `y` is yes, anything else is no.
    ///
    /// # Errors
    /// `UnexpectedEof` if nobody answers; whatever else keeps the question or the answer from coming through.
    pub fn confirm(self, question: impl std::fmt::Display) -> std::io::Result<bool> {
        let mut output = std::io::stdout();
        write!(output, "{question}")?;
        output.flush()?;
        let mut answer = String::new();
        match std::io::stdin().lock().read_line(&mut answer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim().eq_ignore_ascii_case("y")),
        }
    }

    /// Asks for a line.
    ///
    /// # Errors
    /// `UnexpectedEof` if nobody answers; whatever else keeps the question or the answer from coming through.
    pub fn ask(self, question: &str) -> std::io::Result<String> {
        eprint!("{question}");
        let mut answer = String::new();
        match std::io::stdin().lock().read_line(&mut answer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }

    /// Asks for a line that does not appear on the terminal.
    ///
    /// # Errors
    /// As [`Report::ask`].
    pub fn ask_secret(self, question: &str) -> std::io::Result<String> {
        let input = std::io::stdin();
        let before = tcgetattr(&input).ok();
        if let Some(mut silent) = before.clone() {
            silent.local_modes.remove(LocalModes::ECHO);
            tcsetattr(&input, OptionalActions::Flush, &silent)?;
        }
        let answer = self.ask(question);
        if let Some(before) = before {
            tcsetattr(&input, OptionalActions::Flush, &before)?;
            eprintln!();
        }
        answer
    }

    /// All of standard input, of at most `most` bytes, without the last line's end.
    ///
    /// # Errors
    /// If it cannot be read, is longer or is no text.
    pub fn password_from_input(self, most: usize) -> std::io::Result<String> {
        let mut text = String::new();
        std::io::stdin().lock().take(most as u64 + 1).read_to_string(&mut text)?;
        if text.len() > most {
            return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is too long for a password"));
        }
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Raw bytes of the result.
    ///
    /// # Errors
    /// If stdout is closed.
    pub fn bytes(self, bytes: &[u8]) -> std::io::Result<()> {
        std::io::stdout().write_all(bytes)
    }
}
