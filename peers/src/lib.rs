//! Programs that ours are compared with, from Python packages: found, or installed into an environment of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A program in Python packages.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// What people call it.
    pub name: &'static str,
    /// The module that a Python must have.
    pub module: &'static str,
    /// What `pip` installs for it.
    pub packages: &'static [&'static str],
    /// How much that is, in words.
    pub size: &'static str,
}

impl Peer {
    /// The given Python, or that of the peer's own environment, which is made and filled where there is none.
    ///
    /// # Errors
    /// No Python, a given one without the module, or packages that cannot be installed.
    pub fn python(&self, given: Option<&Path>) -> Result<PathBuf> {
        if let Some(python) = given {
            let found = self.is_in(python);
            let (path, module) = (python.display(), self.module);
            ensure!(found, "--python {path}: expected a Python with {} (import {module} failed)", self.name);
            return Ok(python.to_owned());
        }
        let folder = cache_folder()?.join(format!("{}-peer", self.module));
        let python = folder.join("bin/python");
        if !self.is_in(&python) {
            eprintln!("installing {} into {} (once; {})", self.name, folder.display(), self.size);
            self.run(Command::new("python3").args(["-m", "venv"]).arg(&folder), "python3 -m venv")?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
            self.run(Command::new(&python).args(pip).args(self.packages), "pip install")?;
            let found = self.is_in(&python);
            ensure!(found, "{}: {} was installed but cannot be imported", python.display(), self.name);
        }
        Ok(python)
    }

    fn is_in(&self, python: &Path) -> bool {
        let mut import = Command::new(python);
        import.args(["-c", &format!("import {}", self.module)]).stdout(Stdio::null()).stderr(Stdio::null());
        import.status().is_ok_and(|status| status.success())
    }

    fn run(&self, command: &mut Command, what: &str) -> Result<()> {
        // Standard output is the caller's: a table, or JSON.
        let status = command.stdout(Stdio::null()).status().with_context(|| format!("{what}: cannot start"))?;
        ensure!(status.success(), "{what} failed ({status}); or give --python a Python that has {}", self.name);
        Ok(())
    }
}

/// `$XDG_CACHE_HOME/multicoder`, or below `~/.cache`.
///
/// # Errors
/// Neither variable is set.
pub fn cache_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set: no place for peers; give --python")?.join("multicoder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_without_the_module_is_an_error_that_says_so() {
        let peer = Peer { name: "Nothing", module: "no_such_module", packages: &[], size: "nothing" };
        let error = peer.python(Some(Path::new("/no/such/python"))).unwrap_err().to_string();
        let expected = "--python /no/such/python: expected a Python with Nothing (import no_such_module failed)";
        assert_eq!(error, expected);
    }

    #[cfg(unix)]
    #[test]
    fn a_python_that_imports_the_module_is_taken() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("python");
        std::fs::write(&python, "#!/bin/sh\n[ \"$2\" = 'import known' ]\n").unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        let peer = |module| Peer { name: "Known", module, packages: &[], size: "" };
        assert_eq!(peer("known").python(Some(&python)).unwrap(), python);
        assert!(peer("unknown").python(Some(&python)).is_err());
    }
}
