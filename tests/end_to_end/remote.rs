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
fn a_sandbox_over_a_remote_image_takes_writes() {
    let environment = TestEnvironment::new();
    let server = serve(&environment);

    environment.siphon(&["build", "--sandbox", "box", &server.url("image.sif")]).stdout();
    environment.siphon(&["exec", "-w", "box", "sh", "-c", "echo more >> /data/greeting"]).stdout();

    assert_eq!(environment.siphon(&["exec", "box", "cat", "/data/greeting"]).stdout(), "hello from the image\nmore");
    assert!(server.sent_bytes() < PAYLOAD_BYTES / 2, "{} bytes were sent", server.sent_bytes());
}
