use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::image::PAYLOAD_BYTES;
use crate::support::server::Server;

fn serve(environment: &TestEnvironment) -> Server {
    Server::start(environment.images().sif.parent().unwrap())
}

#[test]
fn a_remote_image_runs_after_a_part_of_it_was_fetched() {
    as_user_and_as_root(|environment| {
        let server = serve(environment);

        let output = environment.siphon(&["exec", &server.url("image.sif"), "cat", "/data/greeting"]).stdout();

        assert_eq!(output, "hello from the image");
        assert!(server.sent_bytes() > 0);
        assert!(server.sent_bytes() < PAYLOAD_BYTES / 2, "{} bytes were sent", server.sent_bytes());
    });
}

#[test]
fn every_byte_of_a_remote_image_is_right() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);

    let remote = environment.siphon(&["exec", &server.url("image.sif"), "md5sum", "/data/payload"]).stdout();
    let local = environment.siphon(&["exec", environment.images().sif(), "md5sum", "/data/payload"]).stdout();

    assert_eq!(remote, local);
}

#[test]
fn what_was_fetched_once_is_read_from_disk_by_the_next_daemon() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);
    let url = server.url("image.sif");
    environment.siphon(&["exec", &url, "cat", "/data/payload"]).run();
    let before = server.sent_bytes();
    while !environment.daemons().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }

    environment.siphon(&["exec", &url, "md5sum", "/data/payload"]).stdout();

    let again = server.sent_bytes() - before;
    assert!(again < 1 << 20, "{again} bytes were fetched again");
}

#[test]
fn a_remote_image_is_looked_into_without_being_downloaded() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);
    let url = server.url("image.sif");

    assert_eq!(environment.siphon(&["cat", &url, "/data/greeting"]).stdout(), "hello from the image");
    assert!(environment.siphon(&["ls", &url, "/data"]).stdout().contains("greeting"));
    assert!(environment.siphon(&["inspect", &url]).stdout().contains("maker"));
    assert!(server.sent_bytes() < PAYLOAD_BYTES / 2, "{} bytes were sent", server.sent_bytes());
}

#[test]
fn a_remote_image_is_listed_with_two_requests() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);

    let listing = environment.siphon(&["ls", "-lR", &server.url("image.sif")]).stdout();

    assert!(listing.contains("greeting"));
    assert_eq!(server.requests(), 2, "the head and the tables");
}

#[test]
fn what_was_read_runs_again_when_the_server_is_gone() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);
    let url = server.url("image.sif");
    environment.siphon(&["exec", &url, "cat", "/data/greeting"]).run();
    environment.wait_for_daemons_to_leave();
    drop(server);

    let output = environment.siphon(&["exec", &url, "cat", "/data/greeting"]).stdout();
    let missing = environment.siphon(&["exec", &url, "md5sum", "/data/payload"]).run();

    assert_eq!(output, "hello from the image");
    assert_ne!(missing.code, 0, "{missing}");
    assert!(missing.stderr.contains("Input/output error"), "{missing}");
}

#[test]
fn a_pinned_image_runs_without_its_server() {
    as_user_and_as_root(|environment| {
        let server = serve(environment);
        let url = server.url("image.sif");

        let pinned = environment.siphon(&["pin", &url]).run();
        let listed = environment.siphon(&["pin", "--list"]).stdout();
        environment.siphon(&["cache", "clean", "--force"]).run();
        drop(server);
        let remote = environment.siphon(&["exec", &url, "md5sum", "/data/payload"]).stdout();
        let status = environment.siphon(&["status", "--json"]).stdout();
        let unpinned = environment.siphon(&["pin", "--unpin", &url]).run();

        assert!(pinned.stderr.contains("Pinned "), "{pinned}");
        assert!(listed.contains(&url), "{listed}");
        assert_eq!(
            remote,
            environment.siphon(&["exec", environment.images().sif(), "md5sum", "/data/payload"]).stdout()
        );
        assert!(status.contains(r#""pinned": true"#) && status.contains(r#""requests": 0"#), "{status}");
        assert_eq!(unpinned.code, 0, "{unpinned}");
        assert_eq!(environment.siphon(&["pin", "--list"]).stdout(), "");
    });
}

#[test]
fn only_remote_images_are_pinned() {
    let environment = TestEnvironment::new();

    let refused = environment.siphon(&["pin", environment.images().sif()]).run();
    let unknown = environment.siphon(&["pin", "--unpin", "http://127.0.0.1:1/image.sif"]).run();

    assert!(refused.code == 255 && refused.stderr.contains("is a local image"), "{refused}");
    assert!(unknown.code == 255 && unknown.stderr.contains("is not pinned"), "{unknown}");
}

#[test]
fn a_sandbox_over_a_remote_image_takes_writes() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);

    environment.siphon(&["build", "--sandbox", "box", &server.url("image.sif")]).stdout();
    environment.siphon(&["exec", "-w", "box", "sh", "-c", "echo more >> /data/greeting"]).stdout();

    assert_eq!(environment.siphon(&["exec", "box", "cat", "/data/greeting"]).stdout(), "hello from the image\nmore");
    assert!(server.sent_bytes() < PAYLOAD_BYTES / 2, "{} bytes were sent", server.sent_bytes());
}
