//! Statuses in the text format of Prometheus, version 0.0.4: a family is a `HELP` line, a `TYPE` line, and a sample for
//! each daemon. <https://prometheus.io/docs/instrumenting/exposition_formats/>
//!
//! An image may be served more than once, so that its mount point tells the samples apart.

use siphon_fsd::control::Status;

/// What is measured of each daemon, under a name that begins with `siphon_`.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// A sample is a 64-bit float, whatever it counts.
    value: fn(&Status) -> f64,
}

const METRICS: &[Metric] = &[
    gauge("clients", "Processes that use the mount.", |s| s.clients as f64),
    gauge("image_bytes", "Bytes of the image file.", |s| s.image_bytes as f64),
    gauge("cache_limit_bytes", "Bytes of decoded content that are kept at most.", |s| s.cache_bytes as f64),
    counter("lookups_total", "Names looked up.", |s| s.counters.requests.lookups as f64),
    counter("opens_total", "Files opened.", |s| s.counters.requests.opens as f64),
    counter("reads_total", "Read requests of the kernel.", |s| s.counters.requests.reads as f64),
    counter("read_bytes_total", "Bytes that read requests returned.", |s| s.counters.requests.bytes_read as f64),
    counter("read_ahead_bytes_total", "Bytes handed to the kernel before it asked.", |s| {
        s.counters.requests.bytes_read_ahead as f64
    }),
    counter("writes_total", "Write requests of the kernel.", |s| s.counters.requests.writes as f64),
    counter("written_bytes_total", "Bytes that write requests stored.", |s| s.counters.requests.bytes_written as f64),
    counter("directory_reads_total", "Directories listed.", |s| s.counters.requests.directory_reads as f64),
    counter("failures_total", "Requests that the image or the layer failed.", |s| s.counters.requests.failures as f64),
    counter("storage_reads_total", "Reads of the image file.", |s| s.counters.storage.storage_reads as f64),
    counter("storage_read_bytes_total", "Bytes read of the image file.", |s| s.counters.storage.storage_bytes as f64),
    counter("storage_wait_seconds_total", "Time that threads waited for reads of the image file, added up.", |s| {
        s.counters.storage.storage_nanos as f64 / 1e9
    }),
    counter("fetched_bytes_total", "Bytes that came over the network.", |s| s.bytes_fetched.unwrap_or(0) as f64),
    counter("doubled_bytes_total", "Bytes asked for twice as an answer was late: at most so many more came.", |s| {
        s.network.map_or(0, |network| network.bytes_doubled) as f64
    }),
    counter("decoded_blocks_total", "Blocks decoded.", |s| s.counters.decoding.decoded_blocks as f64),
    counter("decoded_bytes_total", "Bytes that blocks decoded to.", |s| s.counters.decoding.decoded_bytes as f64),
    counter("cache_hits_total", "Blocks wanted that were in the cache.", |s| s.counters.decoding.cache_hits as f64),
    counter("cache_misses_total", "Blocks wanted that were not.", |s| s.counters.decoding.cache_misses as f64),
    counter("cache_waits_total", "Blocks wanted that another thread was decoding.", |s| {
        s.counters.decoding.cache_waits as f64
    }),
];

const fn gauge(name: &'static str, help: &'static str, value: fn(&Status) -> f64) -> Metric {
    Metric { name, kind: "gauge", help, value }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Status) -> f64) -> Metric {
    Metric { name, kind: "counter", help, value }
}

/// The metrics of all `daemons`; nothing if there is none.
pub fn exposition(daemons: &[Status]) -> String {
    let families = METRICS.iter().filter(|_| !daemons.is_empty()).map(|metric| {
        let Metric { name, kind, help, value } = metric;
        let samples = daemons.iter().map(|daemon| {
            let (image, mount) = (escaped(&daemon.image), escaped(&daemon.mount.display().to_string()));
            format!("siphon_{name}{{image=\"{image}\",mount=\"{mount}\"}} {}\n", value(daemon))
        });
        format!("# HELP siphon_{name} {help}\n# TYPE siphon_{name} {kind}\n{}", samples.collect::<String>())
    });
    families.collect()
}

/// A label's value: backslashes, quotes and line ends are written with a backslash.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use siphon_fsd::metrics::Snapshot;
    use siphon_fsd::storage::StorageUse;
    use std::collections::BTreeSet;

    fn status(image: &str, storage: StorageUse) -> Status {
        Status {
            pid: 1,
            image: image.into(),
            mount: "/run/root".into(),
            layer: "none".into(),
            writable: false,
            engine: None,
            started: 0,
            clients: 2,
            image_bytes: 1 << 40,
            bytes_fetched: None,
            network: None,
            bytes_read: 0,
            cache_bytes: 64 << 20,
            counters: Snapshot { storage, ..Snapshot::default() },
        }
    }

    #[test]
    fn a_family_has_its_samples_together_one_for_each_daemon() {
        let usage = StorageUse { storage_nanos: 1_250_000_000, ..StorageUse::default() };
        let text = exposition(&[status("/a.sif", usage), status("/b \"c\\d\n", StorageUse::default())]);

        let family = [
            "# HELP siphon_storage_wait_seconds_total Time that threads waited for reads of the image file, added up.",
            "# TYPE siphon_storage_wait_seconds_total counter",
            r#"siphon_storage_wait_seconds_total{image="/a.sif",mount="/run/root"} 1.25"#,
            r#"siphon_storage_wait_seconds_total{image="/b \"c\\d\n",mount="/run/root"} 0"#,
            "",
        ];
        assert!(text.contains(&family.join("\n")), "{text}");
        assert!(text.contains("siphon_image_bytes{image=\"/a.sif\",mount=\"/run/root\"} 1099511627776\n"), "{text}");
    }

    #[test]
    fn without_a_daemon_there_is_nothing_to_measure() {
        assert_eq!(exposition(&[]), "");
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();

        assert_eq!(names.len(), METRICS.len());
        for Metric { name, kind, .. } in METRICS {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        }
    }
}
