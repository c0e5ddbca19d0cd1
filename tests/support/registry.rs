//! A real registry on loopback: docker-registry with a directory of its own, ended with the test.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `me` with the password `hush`, as `htpasswd -B` writes it.
const PASSWORDS: &str = "me:$2y$05$31v8Z50SL0FNhPkPHhCeS.hDqWaEe1ewgifbNDZKevi4.7nF6YIsW\n";
/// A loaded machine starts it within this.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Runs until it is dropped.
pub(crate) struct Registry {
    process: Child,
    port: u16,
    directory: TempDir,
}

/// What a registry asks of those who come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demands {
    /// A name and a password: `me` and `hush`.
    pub(crate) password: bool,
    /// TLS, with a certificate that no system knows.
    pub(crate) tls: bool,
}

impl Registry {
    /// Starts one that anyone may use over http.
    pub(crate) fn start() -> Self {
        Self::start_with(Demands::default())
    }

    pub(crate) fn start_with(demands: Demands) -> Self {
        let directory = super::environment::open_directory("siphon-test-registry-");
        let own = directory.path().display().to_string();
        let mut more = String::new();
        if demands.password {
            std::fs::write(directory.path().join("passwords"), PASSWORDS).unwrap();
            more += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {own}/passwords\n");
        }
        let mut http = String::new();
        if demands.tls {
            make_certificate(&directory);
            http = format!("  tls:\n    certificate: {own}/certificate\n    key: {own}/key\n");
        }
        let port = free_port();
        let configuration = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {own}/data\n\
             http:\n  addr: 127.0.0.1:{port}\n{http}{more}"
        );
        let file = directory.path().join("config.yml");
        std::fs::write(&file, configuration).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is missing: run tests/setup first");
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, port, directory }
    }

    /// `127.0.0.1:PORT`, or by name where there is a certificate.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Changes the first byte of the blob with the hex digest `digest`.
    pub(crate) fn damage(&self, digest: &str) {
        self.change(digest, |bytes| bytes[0] ^= 0xff);
    }

    /// Changes the last byte of a blob.
    pub(crate) fn damage_end(&self, digest: &str) {
        self.change(digest, |bytes| *bytes.last_mut().unwrap() ^= 0xff);
    }

    /// Takes so many bytes off the end of a blob.
    pub(crate) fn shorten(&self, digest: &str, bytes: usize) {
        self.change(digest, |blob| blob.truncate(blob.len() - bytes));
    }

    /// Loses a blob.
    pub(crate) fn lose(&self, digest: &str) {
        std::fs::remove_file(self.data(digest)).unwrap();
    }

    fn change(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let data = self.data(digest);
        let mut bytes = std::fs::read(&data).unwrap();
        change(&mut bytes);
        std::fs::write(&data, bytes).unwrap();
    }

    /// Where a blob lies.
    fn data(&self, digest: &str) -> PathBuf {
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&digest[..2]).join(digest).join("data")
    }

    /// Loses a repository, with all of its tags.
    pub(crate) fn forget(&self, repository: &str) {
        std::fs::remove_dir_all(self.directory.path().join("data/docker/registry/v2/repositories").join(repository))
            .unwrap();
    }

    /// The certificate that it shows.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn make_certificate(directory: &TempDir) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        // A certificate that may sign others is none for a server.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key", "-out", "certificate"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
