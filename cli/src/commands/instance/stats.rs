//! `siphon instance stats`.

use super::{no_instance_found, registry};
use crate::args::InstanceStatsArgs;
use crate::instance::{Record, RegistryError, Source, Usage, usage};
use crate::report::{Report, columns, human_bytes};
use crate::settings::Common;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time between two looks: the use of processors is what happens in it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints what the instance uses, once or every second until it ends.
///
/// # Errors
/// If there is no such instance.
pub(super) fn stats(args: &InstanceStatsArgs, common: &Common, report: Report) -> anyhow::Result<()> {
    let record = match registry(args.user.as_deref(), "view stats of", common)?.find(&args.name) {
        Err(RegistryError::NotFound(_)) => return Err(no_instance_found()),
        record => record?,
    };
    let Some(mut before) = look(&record)? else { return Err(no_instance_found()) };
    if args.json {
        return Ok(report.line(serde_json::to_string_pretty(&as_json(&before))?)?);
    }
    if before.source == Source::Proc {
        report.info("The instance has no cgroup of its own: what its processes use is added up from /proc");
    }
    let mut looked = Instant::now();
    loop {
        sleep(INTERVAL);
        let Some(now) = look(&record)? else { return Ok(()) };
        let passed = looked.elapsed();
        looked = Instant::now();
        report.bytes(columns(&table(&record, &before, &now, passed)).as_bytes())?;
        if args.no_stream {
            return Ok(());
        }
        before = now;
    }
}

/// `None` if the instance has ended.
fn look(record: &Record) -> anyhow::Result<Option<Usage>> {
    match usage(&record.process) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        usage => Ok(Some(usage.with_context(|| format!("cannot see what instance {} uses", record.name))?)),
    }
}

fn table(record: &Record, before: &Usage, now: &Usage, passed: Duration) -> [Vec<String>; 2] {
    let cpu = Duration::from_nanos(now.cpu_nanos.saturating_sub(before.cpu_nanos));
    let percent = |part: f64, whole: f64| format!("{:.2}%", if whole > 0.0 { part / whole * 100.0 } else { 0.0 });
    let header = ["INSTANCE NAME", "CPU USAGE", "MEM USAGE / LIMIT", "MEM %", "BLOCK I/O", "PIDS"];
    let row = vec![
        record.name.clone(),
        percent(cpu.as_secs_f64(), passed.as_secs_f64()),
        format!("{} / {}", human_bytes(now.memory_bytes), human_bytes(now.memory_limit_bytes)),
        percent(now.memory_bytes as f64, now.memory_limit_bytes as f64),
        format!("{} / {}", human_bytes(now.read_bytes), human_bytes(now.written_bytes)),
        now.processes.to_string(),
    ];
    [header.map(str::to_owned).to_vec(), row]
}

/// The names are those of singularity, which are those of the cgroup library of runc.
fn as_json(usage: &Usage) -> Value {
    json!({
        "source": usage.source,
        "cpu_stats": { "cpu_usage": { "total_usage": usage.cpu_nanos } },
        "memory_stats": { "usage": { "usage": usage.memory_bytes, "limit": usage.memory_limit_bytes } },
        "blkio_stats": { "io_service_bytes_recursive": [
            { "op": "Read", "value": usage.read_bytes },
            { "op": "Write", "value": usage.written_bytes },
        ] },
        "pids_stats": { "current": usage.processes },
    })
}
