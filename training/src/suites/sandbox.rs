//! Runs a program that a model wrote, where it can do no harm: no network, nothing to write to but a small memory disk, bounded time,
//! memory and processes.
//!
//! The walls are bubblewrap's (namespaces of users, processes, mounts and networks), the bounds `prlimit`'s. Root's processes are not
//! counted by the kernel, so that as root the program becomes another user first (`setpriv`). It can read the machine's files, as that user,
//! but not `/run` and `/var`, where the sockets of services are, and tell nobody.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Where the program starts: a disk in memory, empty but for [`SOURCES`].
const HOME: &str = "/tmp";
/// The folder in it where the program's files lie, read-only.
const SOURCES: &str = "src";
/// How often all memory is added up.
const WEIGHED_EVERY: Duration = Duration::from_millis(100);
/// A user without rights.
const NOBODY: &str = "65534";

/// What a program may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From start to end.
    pub wall: Duration,
    /// Of one process.
    pub cpu_s: u64,
    /// Memory of one process that is its own.
    pub data_mb: u64,
    /// Addresses of one process, which bounds what it shares too; none for programs that reserve more than they use.
    pub address_mb: Option<u64>,
    /// Memory of all processes together, looked at ten times a second.
    pub total_mb: u64,
    /// Size of the disk in memory.
    pub disk_mb: u64,
    /// Processes and threads.
    pub n_processes: u64,
}

impl Default for Limits {
    /// Enough to compile and run the tests of a function.
    fn default() -> Limits {
        Limits {
            wall: Duration::from_secs(20),
            cpu_s: 15,
            data_mb: 2048,
            address_mb: Some(4096),
            total_mb: 4096,
            disk_mb: 128,
            n_processes: 128,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With code 0.
    Passed,
    /// With another code, or by a signal: its own, or that of a limit.
    Failed,
    /// It was still running when its time was over.
    TimedOut,
}

/// A way to run programs behind walls.
#[derive(Clone, Debug)]
pub struct Sandbox {
    launcher: Vec<String>,
}

impl Sandbox {
    /// Finds what the walls are made of and tries it.
    ///
    /// # Errors
    /// What is missing, or why it does not work here.
    pub fn open() -> Result<Sandbox> {
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let nobody = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        let launcher = nobody.into_iter().filter(|_| is_root).chain(["bwrap"]).map(str::to_owned).collect();
        let sandbox = Sandbox { launcher };
        let empty = tempfile::tempdir()?;
        let output = sandbox.command(empty.path(), "true", &Limits::default()).stderr(Stdio::piped()).output();
        let output = output.context("programs are run by bubblewrap and util-linux (apt-get install bubblewrap)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "bubblewrap cannot run a program here: {}", said.trim());
        Ok(sandbox)
    }

    /// Runs `script` by `sh` beside `files`, pairs of a name and a text.
    ///
    /// # Errors
    /// Files that cannot be written, a program that cannot be started.
    pub fn run(&self, files: &[(&str, &str)], script: &str, limits: &Limits) -> Result<Outcome> {
        let dir = tempfile::tempdir().context("a folder for the program")?;
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        }
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let mut child = self.command(dir.path(), script, limits).stderr(Stdio::null()).spawn().context("bubblewrap")?;
        let deadline = Instant::now() + limits.wall;
        let mut pause = Duration::from_millis(1);
        let mut weighed = Instant::now();
        let mut end = Outcome::TimedOut;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(outcome(status));
            }
            if weighed.elapsed() > WEIGHED_EVERY {
                weighed = Instant::now();
                if memory_kb(child.id()) > limits.total_mb << 10 {
                    end = Outcome::Failed;
                    break;
                }
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(20));
        }
        // The first process of its namespace dies with it, and with that one all others.
        child.kill()?;
        child.wait()?;
        Ok(end)
    }

    fn command(&self, sources: &Path, script: &str, limits: &Limits) -> Command {
        let mut command = Command::new(&self.launcher[0]);
        command.args(&self.launcher[1..]).args(["--unshare-all", "--die-with-parent", "--new-session"]);
        command.args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]);
        // Sockets of services lie in /run and /var.
        for folder in [HOME, "/dev/shm", "/run", "/var"] {
            command.args(["--size", &(limits.disk_mb << 20).to_string(), "--tmpfs", folder]);
        }
        command.args(["--remount-ro", "/dev", "--remount-ro", "/run", "--remount-ro", "/var"]);
        command.arg("--ro-bind").arg(sources).arg(format!("{HOME}/{SOURCES}"));
        command.args(["--chdir", HOME, "--clearenv", "--setenv", "HOME", HOME, "--setenv", "LC_ALL", "C.UTF-8"]);
        command.arg("--setenv").arg("PATH").arg(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        command.args(["--", "prlimit", "--core=0"]);
        command.arg(format!("--cpu={}", limits.cpu_s)).arg(format!("--data={}", limits.data_mb << 20));
        command.args(limits.address_mb.map(|address_mb| format!("--as={}", address_mb << 20)));
        command.arg(format!("--nproc={}", limits.n_processes)).arg(format!("--fsize={}", limits.disk_mb << 20));
        command.args(["sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command
    }
}

/// Resident memory of a process and all that descend from it.
fn memory_kb(root: u32) -> u64 {
    let mut processes: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
    let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for id in ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let number = |field: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(field));
            rest.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        };
        if let Some(parent) = number("PPid:") {
            processes.entry(parent as u32).or_default().push((id, number("VmRSS:").unwrap_or(0)));
        }
    }
    let mut open = vec![root];
    let mut total = 0;
    while let Some(parent) = open.pop() {
        for (id, kb) in processes.remove(&parent).unwrap_or_default() {
            total += kb;
            open.push(id);
        }
    }
    total
}

fn outcome(status: ExitStatus) -> Outcome {
    if status.success() { Outcome::Passed } else { Outcome::Failed }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// A sandbox, or a printed reason for having none.
    pub(in crate::suites) fn sandbox_or_skip() -> Option<Sandbox> {
        let sandbox = Sandbox::open().and_then(|sandbox| {
            let python = sandbox.run(&[], "command -v python3", &Limits::default())?;
            anyhow::ensure!(python == Outcome::Passed, "no python3");
            Ok(sandbox)
        });
        sandbox.map_err(|error| println!("SKIPPED sandbox of programs that models write: {error:#}")).ok()
    }

    fn python(sandbox: &Sandbox, program: &str) -> Outcome {
        let limits = Limits {
            wall: Duration::from_secs(10),
            cpu_s: 2,
            data_mb: 256,
            address_mb: Some(512),
            total_mb: 600,
            disk_mb: 8,
            n_processes: 32,
        };
        sandbox.run(&[("main.py", program)], "python3 src/main.py", &limits).unwrap()
    }

    #[test]
    fn what_stays_within_its_limits_passes_and_what_says_so_fails() {
        let Some(sandbox) = sandbox_or_skip() else { return };
        assert_eq!(python(&sandbox, "open('own file', 'w').write('x' * 1000)\nassert 1 + 1 == 2"), Outcome::Passed);
        assert_eq!(python(&sandbox, "assert 1 + 1 == 3"), Outcome::Failed);
    }

    #[test]
    fn endless_loops_end() {
        let Some(sandbox) = sandbox_or_skip() else { return };
        // By the limit of processor time, and, where none is used, by the clock.
        assert_eq!(python(&sandbox, "while True: pass"), Outcome::Failed);
        let limits = Limits { wall: Duration::from_millis(500), ..Limits::default() };
        assert_eq!(sandbox.run(&[], "sleep 1000", &limits).unwrap(), Outcome::TimedOut);
    }

    #[test]
    fn a_fork_bomb_ends_with_its_first_process() {
        let Some(sandbox) = sandbox_or_skip() else { return };
        let mark = format!("fork-bomb-{}", std::process::id());
        let bomb =
            format!("import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(0.1) # {mark}");
        let limits = Limits { wall: Duration::from_secs(2), n_processes: 32, ..Limits::default() };
        let script = format!("exec python3 src/main.py {mark}");
        assert_eq!(sandbox.run(&[("main.py", &bomb)], &script, &limits).unwrap(), Outcome::TimedOut);
        // The kernel needs a moment to end them all.
        let alive = || {
            let ids = fs::read_dir("/proc").unwrap().flatten();
            ids.filter(|id| fs::read_to_string(id.path().join("cmdline")).is_ok_and(|line| line.contains(&mark)))
                .count()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while alive() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(alive(), 0);
    }

    #[test]
    fn memory_disk_and_processes_have_bounds() {
        let Some(sandbox) = sandbox_or_skip() else { return };
        assert_eq!(python(&sandbox, "x = bytearray(1 << 30)"), Outcome::Failed);
        assert_eq!(python(&sandbox, "import mmap; mmap.mmap(-1, 1 << 30)"), Outcome::Failed);
        for folder in [".", "/dev/shm"] {
            // Many files, so that it is not the bound of one that holds.
            let fill = format!("for n in range(64): open(f'{folder}/{{n}}', 'wb').write(bytes(1 << 20))");
            assert_eq!(python(&sandbox, &fill), Outcome::Failed, "{folder}");
        }
        // Each within its bound, all together not.
        let together = "import os, time\nfor n in range(8):\n    if os.fork() == 0: break\nx = bytearray(150 << 20)\ntime.sleep(8)";
        assert_eq!(python(&sandbox, together), Outcome::Failed);
        let many = "import os, time\nn = 0\ntry:\n    while n < 40:\n        n += 1\n        if os.fork() == 0: time.sleep(5); os._exit(0)\n\
                    except OSError: raise SystemExit(0)\nraise SystemExit(1)";
        assert_eq!(python(&sandbox, many), Outcome::Passed);
    }

    #[test]
    fn nothing_outside_can_be_written_to() {
        let Some(sandbox) = sandbox_or_skip() else { return };
        let outside = tempfile::tempdir().unwrap();
        fs::set_permissions(outside.path(), Permissions::from_mode(0o777)).unwrap();
        for folder in [outside.path().to_str().unwrap(), "/var", "/run", "/dev", SOURCES, "."] {
            let expected = if folder == "." { Outcome::Passed } else { Outcome::Failed };
            assert_eq!(python(&sandbox, &format!("open('{folder}/mine', 'w').write('x')")), expected, "{folder}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_reaches_nobody() {
        let Some(sandbox) = sandbox_or_skip() else { return };
        let listener = "import socket\ns = socket.create_server(('127.0.0.1', 0))\nprint(s.getsockname()[1], flush=True)\ns.accept()";
        let mut server = Command::new("python3").args(["-c", listener]).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let connect = format!("import socket\nsocket.create_connection(('127.0.0.1', {}), 2)", port.trim());
        assert_eq!(python(&sandbox, &connect), Outcome::Failed);
        // Nor are there sockets of services to be found.
        assert_eq!(python(&sandbox, "import os; assert not os.listdir('/run') + os.listdir('/var')"), Outcome::Passed);
        // The same program, outside, gets through: it is the wall that stops it.
        let outside = Command::new("python3").args(["-c", &connect]).status().unwrap();
        assert!(outside.success() && server.wait().unwrap().success());
    }
}
