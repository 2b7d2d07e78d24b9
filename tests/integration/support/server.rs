//! The real binary as a server, and requests to it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};
use tombola::model::CacheDir;
use ureq::Agent;

use super::environment::{self, cache, package, tombola};

/// The real binary, serving on a free port.
pub struct Server {
    child: Child,
    url: String,
    /// Standard output up to the ready line.
    pub banner: String,
    /// Standard error.
    log: NamedTempFile,
    /// Copy of the shipped tickets, since a folder has one server; `None` if the test gives one.
    tickets: Option<TempDir>,
}

impl Server {
    /// Starts `tombola --port 0` with further arguments, and waits until it serves.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(&cache(), args)
    }

    /// Like [`Server::start`], with another cache folder.
    pub fn start_in(cache: &CacheDir, args: &[&str]) -> Self {
        let mut command = tombola();
        command
            .args(["--port", "0", "--cache-dir"])
            .arg(cache.path())
            .args(args);
        let tickets = (!args.contains(&"--tickets")).then(shipped_tickets);
        if let Some(folder) = &tickets {
            command.arg("--tickets").arg(folder.path());
        }
        let mut server = Self::run(command);
        server.tickets = tickets;
        server
    }

    /// Runs a command that becomes a server, and waits until it serves.
    pub fn run(mut command: Command) -> Self {
        let log = NamedTempFile::new().expect("a temporary file");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.reopen().expect("the log"))
            .spawn()
            .expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut banner = String::new();
        while !banner.contains("  curl ") {
            let read = stdout.read_line(&mut banner).expect("standard output");
            let log = || std::fs::read_to_string(log.path()).unwrap_or_default();
            assert!(read > 0, "the server ended early: {}", log());
        }
        let url = banner
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        let url = url.expect("the banner names the URL").to_owned();
        Self {
            child,
            url,
            banner,
            log,
            tickets: None,
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        environment::signal(name, self.child.id());
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the process to end; returns its status and its standard error.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("the server ends");
        let log = std::fs::read_to_string(self.log.path()).expect("the log");
        (status, log)
    }

    /// Kills the process with SIGKILL and waits for its end.
    pub fn kill(self) {}

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log")
    }

    /// Sends SIGTERM and waits for the process to end.
    pub fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.wait().0
    }
}

/// A copy of the folder of shipped tickets.
pub fn shipped_tickets() -> TempDir {
    let copy = TempDir::new().expect("a temporary folder");
    for entry in std::fs::read_dir(package("adapters")).expect("the shipped tickets") {
        let entry = entry.expect("an entry");
        if entry.path().extension().is_some_and(|e| e == "safetensors") {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
        }
    }
    copy
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if a test has already waited for the end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP client that returns responses with an error status.
pub fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into()
}

/// Posts `body`; returns the status and the JSON answer.
pub fn post(server: &Server, route: &str, body: Value) -> (u16, Value) {
    let url = format!("{}{route}", server.url());
    let mut response = agent().post(&url).send_json(body).expect("an answer");
    (
        response.status().as_u16(),
        response.body_mut().read_json().expect("JSON"),
    )
}

/// Uploads a ticket; returns the status and the JSON answer, or the error of the connection.
pub fn upload(
    url: &str,
    name: &str,
    file: &[u8],
    replace: bool,
) -> Result<(u16, Value), ureq::Error> {
    let part =
        |name: &str| format!("--LINE\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
    let head = format!(
        "{}{name}\r\n{}{replace}\r\n{}",
        part("name"),
        part("replace"),
        part("file")
    );
    let body = [head.as_bytes(), file, b"\r\n--LINE--\r\n"].concat();
    let mut response = agent()
        .post(format!("{url}/v1/tickets"))
        .header("content-type", "multipart/form-data; boundary=LINE")
        .send(&body[..])?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_json()?))
}

/// Deletes `route`; returns the status and the JSON answer, or the error of the connection.
pub fn delete(url: &str, route: &str) -> Result<(u16, Value), ureq::Error> {
    let mut response = agent().delete(format!("{url}{route}")).call()?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_json()?))
}

/// Gets the body of `route`.
pub fn get(server: &Server, route: &str) -> String {
    let url = format!("{}{route}", server.url());
    agent()
        .get(&url)
        .call()
        .expect("an answer")
        .body_mut()
        .read_to_string()
        .expect("text")
}

/// The value of a Prometheus series.
pub fn metric(server: &Server, name: &str) -> f64 {
    let text = get(server, "/metrics");
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    let value = line
        .and_then(|line| line.rsplit(' ').next())
        .expect("the series");
    value.parse().expect("a number")
}
