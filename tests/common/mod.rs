//! One real `godseye` process on a data directory of its own, for tests of the whole system.
//!
//! The process listens on ports that the kernel picks and tells them in one line of JSON on standard output. It
//! is killed when the value is dropped. Not here: what is sent to it, except SQL; and no in-process server,
//! because signals, exit codes and what survives them are what these tests are about.
#![allow(dead_code, reason = "every test binary compiles this and none uses all of it")]
#![allow(clippy::disallowed_methods, reason = "a test sleeps and looks again: there is no shutdown to wait for")]
#![allow(clippy::print_stderr, reason = "what a failed test shows")]
#![allow(unreachable_pub, reason = "a module of test binaries has no public interface")]

pub mod grpc;
pub mod http;
pub mod oracle;

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The largest request the test server takes, after decompression: small, so that tests of it are fast.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// How long the process may take to print its ready line: replay included, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long a process may take to end by itself before the test calls it hung.
const EXIT_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks at something that is about to happen.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many lines of the server's log a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

/// How a server is started; the same again at every restart.
#[derive(Debug)]
pub struct Setup {
    folder: TempDir,
    data_dir: Option<PathBuf>,
    config: String,
    flags: Vec<String>,
    env: Vec<(String, String)>,
}

impl Setup {
    /// An empty data directory, the default configuration, ports that the kernel picks.
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder can be made"),
            data_dir: None,
            config: String::new(),
            flags: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The text of the configuration file.
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// Another data directory.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = Some(dir.to_owned());
        self
    }

    /// One more flag. It comes after those that every server gets, and they may be given only once.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets or removes an environment variable, for the next start.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.env.retain(|(known, _)| known != name);
        self.env.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Another text of the configuration file, for the next start.
    pub fn set_config(&mut self, yaml: &str) {
        yaml.clone_into(&mut self.config);
    }

    /// Where the configuration file is.
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("godseye.yaml")
    }

    /// Where the data directory is.
    pub fn data_path(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        self.try_start().unwrap_or_else(|refused| panic!("the server ended before it was ready: {}", refused.0))
    }

    /// Starts the server; it may end before it is ready.
    pub fn try_start(self) -> Result<Server, Box<(Ended, Self)>> {
        match Running::start(&self) {
            Ok((running, [otlp_grpc, otlp_http, http, pg])) => {
                Ok(Server { setup: self, running, otlp_grpc, otlp_http, http, pg })
            }
            Err(ended) => Err(Box::new((ended, self))),
        }
    }

    /// Starts the process and kills it so long after, ready or not.
    pub fn start_and_kill(&self, after: Duration) {
        let mut child =
            self.command(&PORTS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
        std::thread::sleep(after);
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child can be waited for");
    }

    /// Starts the process with these arguments after `serve --data-dir … --config …`, and waits for its end.
    pub fn run_to_end(&self, arguments: &[&str]) -> Ended {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut child = self.command(&arguments).spawn().expect("the binary under test can be started");
        let mut log = Log::of(child.stderr.take().expect("standard error is piped"));
        let status = wait_for(&mut child);
        Ended { status, log: log.lines_at_end() }
    }

    fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        std::fs::write(self.config_path(), &self.config).expect("the configuration can be written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_godseye"));
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data_path())
            .arg("--config")
            .arg(self.config_path())
            .args(arguments)
            .args(&self.flags)
            .env("GODSEYE_READY_JSON", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// The address of a door that a role does not have.
const NO_DOOR: &str = "0.0.0.0:0";

/// Ports that the kernel picks.
const PORTS: [&str; 8] =
    ["--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--http", "127.0.0.1:0", "--pg", "127.0.0.1:0"];

/// A process that ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Its standard error.
    pub log: Vec<String>,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}", self.status, self.log.join("\n"))
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    running: Running,
    setup: Setup,
    /// OTLP/gRPC.
    pub otlp_grpc: SocketAddr,
    /// OTLP/HTTP.
    pub otlp_http: SocketAddr,
    /// API, `/metrics` and health.
    pub http: SocketAddr,
    /// PostgreSQL's protocol.
    pub pg: SocketAddr,
}

impl Server {
    /// Starts a server on an empty data directory.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server on an empty data directory with more flags.
    pub fn start_with(flags: &[&str]) -> Self {
        let config = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc:\n        max_request_bytes: {MAX_REQUEST_BYTES}\n      \
             http:\n        max_request_bytes: {MAX_REQUEST_BYTES}\n"
        );
        flags.iter().fold(Setup::new().config(&config), |setup, flag| setup.flag(flag)).start()
    }

    /// Starts a server on an empty data directory that keeps what is years old: some clients' telemetry has a fixed
    /// time, so that its rows can be compared, and retention goes by that.
    pub fn start_keeping() -> Self {
        let keep = "storage: { retention: { traces: 3650d, metrics: 3650d, logs: 3650d, profiles: 3650d } }";
        Setup::new().config(keep).start()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.setup.data_path()
    }

    /// The configuration file; it is written anew at every restart.
    pub fn config_path(&self) -> PathBuf {
        self.setup.config_path()
    }

    /// How it was started, to change it before a restart.
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// The lines of its standard error so far.
    pub fn log(&self) -> Vec<String> {
        self.running.log.lines()
    }

    /// SIGKILL: the process gets no chance to do anything. Returns once it is gone.
    pub fn kill(&mut self) {
        self.running.child.kill().expect("a child can be killed");
        self.running.child.wait().expect("a killed child can be waited for");
    }

    /// Sends a signal by its name: `TERM`, `HUP`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill(1) is there");
        assert!(status.success(), "SIG{name} could not be sent to {pid}");
    }

    /// SIGTERM: asks for a graceful drain. Returns its exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Waits for its end, which something else brought about.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.running.child)
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.running.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Starts the process again on the same data directory, after it ended. Its addresses change.
    pub fn restart(&mut self) {
        self.try_restart().unwrap_or_else(|ended| panic!("the server ended before it was ready: {ended}"));
    }

    /// As [`Server::restart`], when it may end before it is ready.
    pub fn try_restart(&mut self) -> Result<(), Ended> {
        let (running, addresses) = Running::start(&self.setup)?;
        self.running = running;
        [self.otlp_grpc, self.otlp_http, self.http, self.pg] = addresses;
        Ok(())
    }

    /// Runs a statement and returns `{"columns":[…],"rows":[[…]],…}`.
    pub fn sql(&self, sql: &str) -> serde_json::Value {
        let response = self.query(sql, "json");
        let text = String::from_utf8_lossy(&response.body);
        assert_eq!(response.status, 200, "{sql}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{sql}: {error}: {text}"))
    }

    /// Runs a statement and returns the response in a format.
    pub fn query(&self, sql: &str, format: &str) -> http::Response {
        http::Request::new("POST", &format!("/api/v1/sql?format={format}"))
            .header("content-type", "text/plain")
            .body(sql.as_bytes())
            .send(self.http)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The first cell of a statement's answer, as a number.
    pub fn number(&self, sql: &str) -> u64 {
        oracle::number(&self.sql(sql)["rows"][0][0])
    }

    /// `GET` on the API's listener.
    pub fn get(&self, path: &str) -> http::Response {
        http::Request::new("GET", path).send(self.http).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The sum of a metric over its labels, from `/metrics`; `None` if there is no such metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "/metrics");
        let text = String::from_utf8(response.body).expect("/metrics is UTF-8");
        let values: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

/// The process and what it says.
#[derive(Debug)]
struct Running {
    child: Child,
    log: Log,
}

impl Running {
    /// Starts the process and waits for the addresses it bound: OTLP/gRPC, OTLP/HTTP, HTTP, PostgreSQL.
    fn start(setup: &Setup) -> Result<(Self, [SocketAddr; 4]), Ended> {
        let mut child = setup.command(&PORTS).spawn().expect("the binary under test can be started");
        let log = Log::of(child.stderr.take().expect("standard error is piped"));
        let stdout = child.stdout.take().expect("standard output is piped");
        let (ready, wait) = mpsc::channel();
        // The thread reads to the end, so that the process never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if event["event"] == "ready" {
                    // Nobody waits any more after the first.
                    ready.send(event).ok();
                }
            }
        });
        let mut running = Self { child, log };
        let event = match wait.recv_timeout(READY_WITHIN) {
            Ok(event) => event,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = wait_for(&mut running.child);
                return Err(Ended { status, log: running.log.lines_at_end() });
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("the server printed no ready line within {READY_WITHIN:?}")
            }
        };
        let addresses = ["otlp_grpc", "otlp_http", "http", "pg"].map(|name| {
            assert!(event.get(name).is_some(), "the ready line has no {name}: {event}");
            // Not every role has every door.
            let text = event[name].as_str().unwrap_or(NO_DOOR);
            text.parse().unwrap_or_else(|error| panic!("{name}: {error}: {event}"))
        });
        Ok((running, addresses))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when the test has ended the process itself.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let lines = self.log.lines();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- the last lines of the server's log ---\n{}", shown.join("\n"));
        }
    }
}

/// What a process writes to its standard error, line by line, read by a thread so that it never blocks.
#[derive(Debug)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Log {
    fn of(stderr: impl Read + Send + 'static) -> Self {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                line.clear();
            }
        });
        Self { lines, reader: Some(reader) }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything, once the process is gone.
    fn lines_at_end(&mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reading thread does not panic");
        }
        self.lines()
    }
}

/// Waits for the end of a process.
fn wait_for(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + EXIT_WITHIN;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if Instant::now() >= deadline {
            child.kill().ok();
            child.wait().ok();
            panic!("the process did not end within {EXIT_WITHIN:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks until something is there, and says what is missing if it does not come.
pub fn until<T>(what: &str, within: Duration, look: impl FnMut() -> Option<T>) -> T {
    came(within, look).unwrap_or_else(|| panic!("{what}: did not come within {within:?}"))
}

/// Looks until something is there, or the time is over.
pub fn came<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits so long.
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
