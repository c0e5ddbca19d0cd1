//! `siphon doctor`: what this machine has of that which siphon needs, and what mends the rest.

mod accounts;
mod check;
mod driver;
mod kernel;
mod storage;

use crate::args::DoctorArgs;
use crate::report::Report;
use crate::settings::{Common, Environment};
use check::{Check, State};

/// Something that siphon cannot do without is missing; what it is has been printed.
#[derive(Debug, thiserror::Error)]
#[error("something that siphon needs is missing on this machine")]
pub struct Unfit;

/// Prints one line a check, with what mends it below, or a JSON array.
///
/// # Errors
/// [`Unfit`], or if stdout is closed.
pub fn doctor(args: &DoctorArgs, common: &Common, environment: &Environment, report: Report) -> anyhow::Result<()> {
    let mut checks = accounts::checks(environment);
    checks.extend(storage::checks(common, environment));
    checks.extend(driver::checks(args.nv, args.rocm, environment));
    // The trial moves this process into namespaces of its own, so it is the last one to look at anything.
    checks.splice(0..0, kernel::checks());
    if args.json {
        report.line(serde_json::to_string_pretty(&checks)?)?;
    } else {
        print(&checks, report)?;
    }
    let fit = checks.iter().all(|check| check.state != State::Missing || !check.needed);
    if fit { Ok(()) } else { Err(Unfit.into()) }
}

fn print(checks: &[Check], report: Report) -> std::io::Result<()> {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in checks {
        report.line(format_args!("{:8} {:width$}  {}", check.state.word(), check.name, check.detail))?;
        if let Some(mend) = &check.mend {
            report.line(format_args!("{:8} {:width$}  -> {mend}", "", ""))?;
        }
    }
    Ok(())
}
