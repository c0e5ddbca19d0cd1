use crate::support::environment::{Finished, TestEnvironment, as_user_and_as_root};
use crate::support::server::Server;

/// An environment's server, and what was read through it kept in the cache.
fn serve_and_read(environment: &TestEnvironment) -> Server {
    let server = Server::start(environment.images().sif.parent().unwrap());
    environment.siphon(&["cat", &server.url("image.sif"), "/data/greeting"]).stdout();
    server
}

fn cache(environment: &TestEnvironment, arguments: &[&str]) -> Finished {
    environment.siphon(&[&["cache"], arguments].concat()).run()
}

fn listed(environment: &TestEnvironment) -> Vec<serde_json::Value> {
    serde_json::from_str(&cache(environment, &["list", "--json"]).stdout).unwrap()
}

#[test]
fn an_empty_cache_is_listed_and_cleaned_as_apptainer_does() {
    let environment = TestEnvironment::new();

    let list = cache(&environment, &["list"]);
    let types = cache(&environment, &["list", "-T", "net,oras"]);
    let blobs = cache(&environment, &["list", "-T", "blob"]);
    let clean = cache(&environment, &["clean", "-f"]);

    let nothing = "using 0.00 KiB";
    assert_eq!(
        list.stdout,
        format!(
            "There are 0 container file(s) {nothing} and 0 oci blob file(s) {nothing} of space\n\
             Total space used: 0.00 KiB\n"
        )
    );
    assert!(types.stdout.starts_with(&format!("There are 0 container file(s) {nothing} of space\n")), "{types}");
    assert!(blobs.stdout.starts_with(&format!("There are 0 oci blob file(s) {nothing} of space\n")), "{blobs}");
    assert_eq!(clean.code, 0, "{clean}");
    assert!(clean.stderr.starts_with("INFO:    No cached files to remove at "), "{clean}");
}

#[test]
fn what_was_read_of_a_remote_image_is_listed_and_cleaned() {
    as_user_and_as_root(|environment| {
        let server = serve_and_read(environment);
        let url = server.url("image.sif");

        let entries = listed(environment);
        let text = cache(environment, &["list", "-v"]);
        let cleaned = cache(environment, &["clean", "--force"]);

        assert_eq!(entries.len(), 1);
        let entry = &entries[0];
        assert_eq!((entry["url"].as_str(), entry["type"].as_str()), (Some(url.as_str()), Some("net")));
        let image_bytes = std::fs::metadata(&environment.images().sif).unwrap().len();
        assert_eq!(entry["image_bytes"], image_bytes);
        let stored = entry["stored_bytes"].as_u64().unwrap();
        assert!((1..image_bytes / 2).contains(&stored), "{entry}");
        assert!(
            text.stdout.starts_with("NAME                     DATE CREATED           SIZE             TYPE"),
            "{text}"
        );
        assert!(text.stdout.contains(&url) && text.stdout.contains("There are 1 container file(s) using "), "{text}");
        let name = entry["name"].as_str().unwrap();
        assert_eq!(cleaned.stderr, format!("INFO:    Removing net cache entry: {name} ({url})\n"));
        assert!(listed(environment).is_empty());
    });
}

#[test]
fn nothing_is_removed_without_a_yes() {
    let environment = TestEnvironment::new();
    let _server = serve_and_read(&environment);
    let answered = |answer: &[u8]| environment.siphon(&["cache", "clean"]).stdin(answer).run();

    for answer in ["n\n", "\n", "yes\n"] {
        let refused = answered(answer.as_bytes());
        assert_eq!((refused.code, refused.stderr.as_str()), (0, "INFO:    Handle cleanup canceled\n"), "{refused}");
        assert!(refused.stdout.ends_with("Do you want to continue? [y/N] "), "{refused}");
    }
    let unanswered = answered(b"");
    assert_eq!(unanswered.code, 255, "{unanswered}");
    assert!(unanswered.stderr.starts_with("FATAL:   Handle clean failed: could not prompt user"), "{unanswered}");
    let dry = cache(&environment, &["clean", "--dry-run"]);
    assert_eq!(dry.stdout, "User requested a dry run. Not actually deleting any data!\n");
    assert!(dry.stderr.contains("Removing net cache entry: "), "{dry}");
    for others in [["-f", "-T", "library,oci"], ["-f", "--days", "1"]] {
        assert_eq!(cache(&environment, &[&["clean"], others.as_slice()].concat()).code, 0);
    }
    assert_eq!(listed(&environment).len(), 1);

    assert_eq!(answered(b"y\n").code, 0);

    assert!(listed(&environment).is_empty());
}

#[test]
fn a_daemon_goes_on_while_its_cache_is_cleaned() {
    let environment = TestEnvironment::new();
    let server = serve_and_read(&environment);
    let url = server.url("image.sif");
    environment.siphon(&["exec", &url, "cat", "/data/greeting"]).stdout();

    cache(&environment, &["clean", "-f"]);

    let read = |image: &str| environment.siphon(&["exec", image, "md5sum", "/data/payload"]).stdout();
    assert_eq!(read(&url), read(environment.images().sif()));
}

#[test]
fn the_cache_is_kept_to_its_limit() {
    let environment = TestEnvironment::new();
    let limit = |size: &[&str]| cache(&environment, &[&["limit"], size].concat());

    assert_eq!(limit(&[]).stdout, "32.00 GiB\n");
    assert_eq!(limit(&["1M"]).stdout, "1.00 MiB\n");
    let _server = serve_and_read(&environment);
    let url = listed(&environment)[0]["url"].as_str().unwrap().to_owned();
    environment.siphon(&["exec", &url, "md5sum", "/data/payload"]).stdout();
    assert_eq!(limit(&["4K"]).stdout, "4.00 KiB\n");

    assert_eq!(listed(&environment)[0]["stored_bytes"], 0);
    let wrong = limit(&["much"]);
    assert!(wrong.code == 255 && wrong.stderr.contains("is no size"), "{wrong}");
    let variable = environment.siphon(&["cache", "limit"]).env("SIPHON_CACHE_LIMIT", "2G").run();
    assert_eq!(variable.stdout, "2.00 GiB\n");
}

#[test]
fn an_unknown_type_is_a_usage_error() {
    let environment = TestEnvironment::new();

    let refused = cache(&environment, &["list", "-T", "disk"]);

    assert_eq!(refused.code, 1, "{refused}");
}

#[test]
fn what_is_known_of_earlier_runs_is_cleaned_too() {
    let environment = TestEnvironment::new();
    let traces = || std::fs::read_dir(environment.cache().join("traces")).map_or(0, Iterator::count);
    environment.siphon(&["exec", environment.images().sif(), "true"]).stdout();
    environment.wait_for_daemons_to_leave();
    assert_eq!(traces(), 1);

    cache(&environment, &["clean", "--force", "--days", "1"]);
    assert_eq!(traces(), 1);
    let cleaned = cache(&environment, &["clean", "--force"]);

    assert_eq!((cleaned.code, traces()), (0, 0), "{cleaned}");
}
