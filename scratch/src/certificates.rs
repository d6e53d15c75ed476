//! Certificates for servers that encrypt: of authorities of our own, made by `openssl`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const KEY: &str = "-newkey rsa:2048 -nodes";

/// A folder with what clients and a server need, removed with its owner.
///
/// `ca.pem` is an authority and `other.pem` another; `server.pem` with `server.key` is the first
/// one's certificate for 127.0.0.1, and for no name.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes all of them, valid for two days.
    ///
    /// # Errors
    /// What `openssl` says, or that there is none.
    pub fn make() -> Result<Self> {
        let made = Self { folder: tempfile::tempdir()? };
        for name in ["ca", "other"] {
            let files = format!("-keyout {name}.key -out {name}.pem");
            made.openssl(&format!("req -x509 {KEY} {files} -days 2 -subj /CN={name}"))?;
        }
        made.openssl(&format!("req {KEY} -keyout server.key -out server.csr -subj /CN=server"))?;
        fs::write(made.path("names"), "subjectAltName=IP:127.0.0.1")?;
        made.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem \
             -days 2 -extfile names",
        )?;
        Ok(made)
    }

    /// Where a file lies; one that was not made is missing there.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Copies `server.pem` and `server.key` into a server's data folder, as its owner's.
    ///
    /// # Errors
    /// The system's.
    pub fn give(&self, data: &Path) -> Result<()> {
        let owner = fs::metadata(data)?;
        for file in ["server.pem", "server.key"] {
            let to = data.join(file);
            fs::copy(self.path(file), &to).with_context(|| format!("copy to {}", to.display()))?;
            std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command.current_dir(self.folder.path()).args(arguments.split(' '));
        let output = command.output().context("start openssl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {arguments}: {said}");
        Ok(())
    }
}
