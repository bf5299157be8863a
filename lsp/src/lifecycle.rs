//! When the server must end without being told: its input is at its end, or the editor is dead.

use std::time::Duration;

use tokio::sync::{oneshot, watch};

/// How often the editor's process is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(300);
/// What the last answers get after the input's end.
const GRACE: Duration = Duration::from_millis(300);

/// Why serving ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The editor sent `exit`, after `shutdown` or without it.
    Exit { after_shutdown: bool },
    /// The input was closed.
    InputClosed,
    /// The editor's process is gone.
    EditorGone,
}

impl Ended {
    /// The exit code that the protocol asks for.
    pub fn exit_code(self) -> u8 {
        u8::from(self != Ended::Exit { after_shutdown: true })
    }
}

/// Resolves a moment after the input's end.
pub async fn input_closed(end: oneshot::Receiver<()>) {
    match end.await {
        Ok(()) => tokio::time::sleep(GRACE).await,
        // The reader went away for another reason.
        Err(_) => std::future::pending().await,
    }
}

/// Resolves when the process whose id arrives on `pid` is dead. One that was not there from the start is in another namespace of process
/// ids, and is not watched.
pub async fn editor_gone(mut pid: watch::Receiver<Option<u32>>) {
    let Ok(pid) = pid.wait_for(Option::is_some).await.map(|pid| *pid) else { return std::future::pending().await };
    let Some(pid) = pid.filter(|&pid| is_alive(pid)) else { return std::future::pending().await };
    while is_alive(pid) {
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Whether a process lives; one that only waits to be reaped does not.
#[cfg(target_os = "linux")]
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the program's name, which is in brackets and may itself hold brackets.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 is not delivered; the call only asks whether the process exists.
    let is_there = unsafe { libc::kill(pid, 0) } == 0;
    is_there || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

#[cfg(not(unix))]
fn is_alive(_: u32) -> bool {
    true
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_editor_is_noticed_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (send, receive) = watch::channel(None);
        let watching = tokio::spawn(editor_gone(receive));
        send.send_replace(Some(child.id()));
        tokio::time::sleep(WATCH_INTERVAL).await;
        assert!(!watching.is_finished());
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(1), watching).await.unwrap().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_process_that_was_never_there_is_not_watched() {
        let (_send, receive) = watch::channel(Some(u32::MAX));
        assert!(tokio::time::timeout(Duration::from_millis(50), editor_gone(receive)).await.is_err());
    }

    #[test]
    fn exit_codes_follow_the_protocol() {
        assert_eq!(Ended::Exit { after_shutdown: true }.exit_code(), 0);
        assert_eq!(Ended::Exit { after_shutdown: false }.exit_code(), 1);
        assert_eq!(Ended::InputClosed.exit_code(), 1);
    }
}
