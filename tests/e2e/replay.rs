//! Two hundred keystrokes of a real file, one request each: what a keystroke costs, the start, and the memory of the server.
//!
//! The figures are printed (`cargo e2e replay -- --nocapture`); the ceilings only catch what is badly wrong on a slow machine.

use crate::session::{start, wait_until_loaded};
use anyhow::{Context, Result, ensure};
use multicoder_tests::editor::Editor;
use multicoder_tests::program::language_server;
use multicoder_tests::repository_root;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const N_KEYSTROKES: usize = 200;
const MAX_P95: Duration = Duration::from_secs(3);
const MAX_COLD_START: Duration = Duration::from_secs(10);
const MAX_RESIDENT_MIB: u64 = 1024;

#[test]
fn two_hundred_keystrokes_are_answered_in_time() -> Result<()> {
    let text = std::fs::read_to_string(repository_root().join("grammars/samples/python.py"))?;
    let half = text.len() / 2;
    let begin = text[..half].rfind('\n').map_or(0, |newline| newline + 1);
    let started = Instant::now();
    let capabilities = json!({"textDocument": {"inlineCompletion": {}}});
    let (mut client, _) = start(language_server()?, capabilities, Value::Null)?;
    wait_until_loaded(&mut client)?;
    let cold_start = started.elapsed();
    let mut editor = Editor::open(client, "sample.py", "python", &text[..begin])?;
    editor.complete()?;

    let mut times = Vec::new();
    let mut n_shown = 0;
    for typed in text[begin..].chars().take(N_KEYSTROKES) {
        let started = Instant::now();
        editor.append(&typed.to_string())?;
        n_shown += usize::from(editor.complete()?.is_some());
        times.push(started.elapsed());
    }
    times.sort();
    let (n, p50, p95) = (times.len(), times[times.len() / 2], times[times.len() * 95 / 100]);
    let resident = resident_mib(editor.client.process_id());
    println!(
        "{n} keystrokes: p50 {:.1} ms, p95 {:.1} ms, {n_shown} with ghost text; start to ready {:.0} ms; resident {} MiB",
        p50.as_secs_f64() * 1e3,
        p95.as_secs_f64() * 1e3,
        cold_start.as_secs_f64() * 1e3,
        resident.map_or("?".to_owned(), |mib| mib.to_string()),
    );
    ensure!(p95 < MAX_P95 && cold_start < MAX_COLD_START, "p95 {p95:?}, start {cold_start:?}");
    ensure!(resident.is_none_or(|mib| mib < MAX_RESIDENT_MIB), "resident {resident:?} MiB");
    ensure!(editor.client.shut_down().context("shutdown")?.code() == Some(0));
    Ok(())
}

/// Resident memory of a process; `None` where the system has no `/proc`.
fn resident_mib(process_id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}
