//! `siphon instance list`.

use super::registry;
use crate::args::InstanceListArgs;
use crate::instance::Record;
use crate::report::{Report, columns, json_with_tabs};
use crate::settings::Common;
use anyhow::bail;
use serde::Serialize;

/// All instances, as JSON.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    instances: Vec<Listed<'a>>,
}

/// One of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    instance: &'a str,
    pid: i32,
    img: &'a str,
    ip: &'static str,
    log_err_path: String,
    log_out_path: String,
}

/// Prints the instances that live.
///
/// # Errors
/// If the registry cannot be read, or the options exclude each other.
pub(super) fn list(args: &InstanceListArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    if args.json && args.logs {
        bail!("more than one flags have been set");
    }
    let records = registry(args.user.as_deref(), "list", common)?.live(&args.name)?;
    if args.json {
        let listing = Listing { instances: records.iter().map(listed).collect() };
        return Ok(report.line(json_with_tabs(&listing)?)?);
    }
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut rows = Vec::new();
    if args.logs {
        rows.push(row(&["INSTANCE NAME", "PID", "LOGS"]));
        for record in &records {
            let logs = [record.error.display().to_string(), record.output.display().to_string()];
            rows.push(row(&[&record.name, &record.process.pid.to_string(), &logs[0]]));
            rows.push(row(&["", "", &logs[1]]));
        }
    } else {
        rows.push(row(&["INSTANCE NAME", "PID", "IP", "IMAGE"]));
        let lines = records.iter().map(|it| row(&[&it.name, &it.process.pid.to_string(), "", &it.image]));
        rows.extend(lines);
    }
    Ok(report.bytes(columns(&rows).as_bytes())?)
}

fn listed(record: &Record) -> Listed<'_> {
    Listed {
        instance: &record.name,
        pid: record.process.pid,
        img: &record.image,
        ip: "",
        log_err_path: record.error.display().to_string(),
        log_out_path: record.output.display().to_string(),
    }
}
