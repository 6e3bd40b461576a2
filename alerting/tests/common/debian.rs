//! Programs of Debian's packages, without installing them, and a word with them over HTTP.
//!
//! A package is fetched once into `GODSEYE_REAL_PARTS` (default `~/.cache/godseye/parts`) and unpacked there. Not
//! here: what the programs are to do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A program of a package, by its path inside, fetched if it is not there yet. `finish` makes of a fresh folder
/// what is needed, before anybody else sees it.
pub(crate) fn unpacked(
    package: &str,
    program: &str,
    finish: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<PathBuf, String> {
    let folder = match std::env::var_os("GODSEYE_REAL_PARTS") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").ok_or("HOME is not set")?).join(".cache/godseye/parts"),
    };
    let unpacked = folder.join(package);
    let binary = unpacked.join(program);
    if binary.is_file() {
        return Ok(binary);
    }
    let download = tempfile::tempdir().map_err(|error| error.to_string())?;
    let run = |command: &mut Command| -> Result<(), String> {
        let output = command.current_dir(download.path()).output().map_err(|error| format!("{command:?}: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(format!("{command:?}: {said}"))
    };
    run(Command::new("apt-get").args(["download", package]))?;
    let file = std::fs::read_dir(download.path())
        .map_err(|error| error.to_string())?
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
        .ok_or("apt-get downloaded no package")?;
    // Unpacked beside its place and renamed, so that a half-unpacked one is never used.
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let beside = tempfile::tempdir_in(&folder).map_err(|error| error.to_string())?;
    run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(beside.path()))?;
    finish(beside.path()).map_err(|error| format!("{package} cannot be used: {error}"))?;
    if !binary.is_file() {
        drop(std::fs::remove_dir_all(&unpacked));
        drop(std::fs::rename(beside.path(), &unpacked));
    }
    if binary.is_file() { Ok(binary) } else { Err(format!("{} is not in the package", binary.display())) }
}

/// A process that ends with the test.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), std::io::Error> {
    let mut socket = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut text = Vec::new();
    socket.read_to_end(&mut text).await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}
