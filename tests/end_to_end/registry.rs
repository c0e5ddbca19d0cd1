use crate::support::environment::{TestEnvironment, as_user_and_as_root};
use crate::support::registry::{Demands, Registry};
use crate::support::server::Server;
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;

fn image_bytes(environment: &TestEnvironment) -> Vec<u8> {
    std::fs::read(&environment.images().sif).unwrap()
}

fn push(environment: &TestEnvironment, uri: &str) {
    environment.siphon(&["push", "--no-https", environment.images().sif(), uri]).stdout();
}

/// The files in the working directory, hidden ones too.
fn files(environment: &TestEnvironment) -> Vec<String> {
    let entries = std::fs::read_dir(environment.work()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_image_comes_back_from_a_registry_byte_for_byte_and_under_its_name() {
    as_user_and_as_root(|environment| {
        let registry = Registry::start();
        let uri = format!("oras://{}/some/tool:1.2", registry.host());

        let pushed = environment.siphon(&["push", environment.images().sif(), &uri]).run();
        let pulled = environment.siphon(&["pull", &uri]).run();

        assert_eq!((pushed.code, pulled.code), (0, 0), "{pushed}\n{pulled}");
        assert!(pushed.stderr.contains("INFO:    Upload complete"), "{pushed}");
        assert_eq!(files(environment), ["tool_1.2.sif"]);
        let file = environment.work().join("tool_1.2.sif");
        assert!(std::fs::read(&file).unwrap() == image_bytes(environment));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o755);
        let again = environment.siphon(&["pull", &uri]).run();
        assert_eq!(again.code, 255);
        assert!(again.stderr.contains("Image file already exists: \"tool_1.2.sif\" - will not overwrite"), "{again}");
        environment.siphon(&["pull", "--force", "--disable-cache", "--dir", "..", "work/tool_1.2.sif", &uri]).stdout();
    });
}

#[test]
fn an_image_in_a_registry_runs_without_being_fetched_whole() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let uri = format!("oras://{}/tool:1", registry.host());
    push(&environment, &uri);

    assert_eq!(environment.siphon(&["exec", &uri, "cat", "/data/greeting"]).stdout(), "hello from the image");
    assert_eq!(environment.siphon(&["cat", &uri, "/data/greeting"]).stdout(), "hello from the image");

    let listed = environment.siphon(&["cache", "list", "--json", "--type", "oras"]).stdout();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((listed[0]["type"].as_str(), listed[0]["url"].as_str()), (Some("oras"), Some(uri.as_str())));
    let stored = listed[0]["stored_bytes"].as_u64().unwrap();
    assert!(stored < listed[0]["image_bytes"].as_u64().unwrap() / 2, "{listed}");
    assert!(environment.siphon(&["cache", "clean", "-f", "-T", "net"]).run().stderr.contains("No cached files"));
    let cleaned = environment.siphon(&["cache", "clean", "-f", "-T", "oras"]).run();
    assert!(cleaned.stderr.contains("INFO:    Removing oras cache entry: "), "{cleaned}");
}

#[test]
fn what_a_run_fetched_is_not_fetched_again_by_a_pull() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let uri = format!("oras://{}/tool:1", registry.host());
    push(&environment, &uri);
    environment.siphon(&["pull", "one.sif", &uri]).stdout();
    // The manifest is still to be had, and the file's bytes are not.
    let digest = format!("{:x}", Hex(&Sha256::digest(image_bytes(&environment))));
    registry.damage(&digest);

    environment.siphon(&["pull", "two.sif", &uri]).stdout();
    let direct = environment.siphon(&["pull", "--disable-cache", "three.sif", &uri]).run();

    assert!(std::fs::read(environment.work().join("two.sif")).unwrap() == image_bytes(&environment));
    assert_eq!(direct.code, 255, "{direct}");
    assert!(direct.stderr.contains("and not sha256:"), "{direct}");
    assert_eq!(files(&environment), ["one.sif", "two.sif"]);
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[test]
fn a_registry_with_passwords_and_a_certificate_of_its_own_is_logged_in_to() {
    let environment = TestEnvironment::new();
    let registry = Registry::start_with(Demands { password: true, tls: true });
    let (host, certificate) = (registry.host(), registry.certificate().display().to_string());
    let uri = format!("oras://{host}/tool:1");
    let siphon = |arguments: &[&str]| environment.siphon(arguments).env("SSL_CERT_FILE", &certificate);
    let (place, image) = (format!("docker://{host}"), environment.images().sif().to_owned());

    let refused = siphon(&["push", &image, &uri]).run();
    let wrong = siphon(&["registry", "login", "-u", "me", "-p", "wr0ng", &place]).run();
    let right = siphon(&["registry", "login", "-u", "me", "--password-stdin", &place]).stdin(b"hush\n").run();
    let pushed = siphon(&["push", &image, &uri]).run();
    let listed = siphon(&["registry", "list"]).run();

    assert_eq!(refused.code, 255);
    assert!(refused.stderr.contains(&format!("siphon registry login {host}")), "{refused}");
    assert_eq!(wrong.code, 255);
    assert!(!wrong.stderr.contains("wr0ng"), "{wrong}");
    assert_eq!((right.code, pushed.code), (0, 0), "{right}\n{pushed}");
    let kept = environment.work().join("../state/docker-config.json");
    assert_eq!(std::fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        listed.stdout.contains(&place) && listed.stdout.contains("me") && !listed.stdout.contains("hush"),
        "{listed}"
    );
    assert_eq!(siphon(&["exec", &uri, "cat", "/data/greeting"]).stdout(), "hello from the image");
    let out = siphon(&["registry", "logout", &place]).run();
    assert!(out.stderr.contains("INFO:    Logout succeeded"), "{out}");
    assert_eq!(siphon(&["pull", &uri]).run().code, 255);
    let variables =
        siphon(&["pull", &uri]).env("APPTAINER_DOCKER_USERNAME", "me").env("APPTAINER_DOCKER_PASSWORD", "hush");
    assert_eq!(variables.run().code, 0);
    let stranger = environment.siphon(&["pull", "x.sif", &uri]).run();
    assert_eq!(stranger.code, 255);
    assert!(stranger.stderr.contains("certificate"), "{stranger}");
}

#[test]
fn a_further_tag_names_the_same_image() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let uri = format!("oras://{}/tool", registry.host());
    push(&environment, &format!("{uri}:1"));

    environment.siphon(&["tag", &format!("{uri}:1"), "two"]).stdout();
    environment.siphon(&["pull", &format!("{uri}:two")]).stdout();
    let missing = environment.siphon(&["tag", &format!("{uri}:3"), "four"]).run();
    let odd = environment.siphon(&["tag", &format!("{uri}:1"), "a b"]).run();

    assert!(std::fs::read(environment.work().join("tool_two.sif")).unwrap() == image_bytes(&environment));
    assert!(missing.stderr.contains("does not exist"), "{missing}");
    assert!(odd.stderr.contains("\"a b\" cannot be a tag"), "{odd}");
}

#[test]
fn a_file_of_a_web_server_is_pulled_with_or_without_ranges() {
    let environment = TestEnvironment::new();
    let directory = environment.images().sif.parent().unwrap().to_owned();
    let servers = [Server::start(&directory), Server::start_without_ranges(&directory)];

    for (number, server) in servers.iter().enumerate() {
        let name = format!("{number}.sif");
        environment.siphon(&["pull", &name, &server.url("image.sif")]).stdout();

        assert!(std::fs::read(environment.work().join(name)).unwrap() == image_bytes(&environment));
    }
    let missing = environment.siphon(&["pull", &servers[0].url("none.sif")]).run();
    assert!(missing.stderr.contains("does not exist"), "{missing}");
    std::fs::write(environment.work().join("page"), "<html>not found</html>").unwrap();
    let pages = Server::start(&environment.work());
    let page = environment.siphon(&["pull", "page.sif", &pages.url("page")]).run();
    assert!(page.code == 255 && page.stderr.contains("is no image"), "{page}");
    assert_eq!(files(&environment), ["0.sif", "1.sif", "page"]);
}

#[test]
fn an_image_of_a_library_is_verified_and_run() {
    let environment = TestEnvironment::new();
    let served = environment.make_directory("served");
    let bytes = image_bytes(&environment);
    let hash = format!("sha256.{:x}", Hex(&Sha256::digest(&bytes)));
    let place = |kind: &str| served.join("v1").join(kind).join("some/tools");
    for (kind, tag, content) in [
        (
            "images",
            "1",
            serde_json::json!({"data": {"hash": hash, "size": bytes.len(), "uploaded": true}}).to_string().into_bytes(),
        ),
        ("images", "2", format!(r#"{{"data": {{"hash": "sha256.{:064}", "uploaded": true}}}}"#, 0).into_bytes()),
        ("images", "3", br#"{"data": {"hash": "sha256.00", "uploaded": true}}"#.to_vec()),
        ("imagefile", "1", bytes.clone()),
        ("imagefile", "2", bytes.clone()),
        ("imagefile", "3", bytes.clone()),
    ] {
        std::fs::create_dir_all(place(kind)).unwrap();
        std::fs::write(place(kind).join(format!("x:{tag}")), content).unwrap();
    }
    let server = Server::start(&served);
    let library = server.url("").trim_end_matches('/').to_owned();
    let siphon = |arguments: &[&str]| environment.siphon(arguments).env("SIPHON_LIBRARY", &library);

    siphon(&["pull", "library://some/tools/x:1"]).stdout();
    let lie = siphon(&["pull", "library://some/tools/x:2"]).run();
    let nonsense = siphon(&["pull", "library://some/tools/x:3"]).run();
    let missing = siphon(&["pull", "library://some/tools/y:2"]).run();
    let nowhere = environment.siphon(&["pull", "library://some/tools/x:1", "--force"]).run();

    assert!(std::fs::read(environment.work().join("x_1.sif")).unwrap() == bytes);
    assert!(lie.stderr.contains("and not sha256:00"), "{lie}");
    assert!(nonsense.stderr.contains("is no SHA-256"), "{nonsense}");
    assert!(missing.stderr.contains("does not exist"), "{missing}");
    assert!(nowhere.stderr.contains("there is no library to fetch"), "{nowhere}");
    let run = siphon(&["exec", "library://some/tools/x:1", "cat", "/data/greeting"]).stdout();
    assert_eq!(run, "hello from the image");
    assert_eq!(files(&environment), ["served", "x_1.sif"]);
}

#[test]
fn what_cannot_be_pulled_is_told_from_what_cannot_be_understood() {
    let environment = TestEnvironment::new();
    let registry = Registry::start();
    let host = registry.host();
    let cases = [
        (format!("oras://{host}/none:1"), "does not exist"),
        (format!("docker://{host}/none:1"), "does not exist"),
        ("oras://localhost:1/none:1".to_owned(), "check the network"),
        ("shub://a/b".to_owned(), "Singularity Hub is gone; SIPHON_SHUB_URL names"),
        ("docker://UPPER CASE".to_owned(), "is no name of an image in a registry"),
        ("image.sif".to_owned(), "does not say where the image is"),
    ];

    for (uri, expected) in cases {
        // What is not on this machine is not to be reached from a test.
        let pulled = environment.siphon(&["pull", "x.sif", &uri]).env("HTTPS_PROXY", "http://localhost:1").run();

        assert_eq!(pulled.code, 255, "{pulled}");
        assert!(pulled.stderr.contains(expected), "{pulled}");
    }
    assert!(files(&environment).is_empty());
}

#[test]
fn what_stands_in_for_singularity_hub_says_where_its_images_are() {
    let environment = TestEnvironment::new();
    let directory = environment.make_directory("served");
    std::fs::copy(environment.images().sif(), directory.join("file.sif")).unwrap();
    let server = Server::start(&directory);
    let described = serde_json::json!({ "image": server.url("file.sif"), "name": "me/tool" });
    std::fs::create_dir_all(directory.join("api/container/me")).unwrap();
    std::fs::write(directory.join("api/container/me/tool:1"), described.to_string()).unwrap();
    let siphon =
        |arguments: &[&str]| environment.siphon(arguments).env("SIPHON_SHUB_URL", server.url("").trim_end_matches('/'));

    siphon(&["pull", "shub://me/tool:1"]).stdout();
    let other = siphon(&["pull", "shub://me/tool:2"]).run();

    assert!(std::fs::read(environment.work().join("tool_1.sif")).unwrap() == image_bytes(&environment));
    assert_eq!(siphon(&["exec", "shub://me/tool:1", "cat", "/data/greeting"]).stdout(), "hello from the image");
    assert!(other.code == 255 && other.stderr.contains("does not exist"), "{other}");
}
