//! Many clients of one decoder on a GPU: tokens a second of all together, and what each waits for one.

use std::cell::Cell;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use multicoder_model::{Batching, Client};
use serde::Serialize;

use super::ours::answer;
use super::subject::Subject;
use super::{READ, WRITTEN};
use crate::quantile::quantile;

/// So many clients at once: medians of the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Together {
    pub clients: usize,
    /// Tokens of prompts a second, of all clients.
    pub read_per_s: f64,
    /// Tokens written a second, of all clients.
    pub written_per_s: f64,
    /// Milliseconds from one token of a client to its next.
    pub token_ms: f64,
}

/// Has each of `clients` read a prompt of its own, then all of them write, on the first GPU.
///
/// # Errors
/// No GPU, or one that fails; a model that does not run there, or whose context is too short.
pub fn together(
    subject: &Subject,
    clients: &[usize],
    rounds: usize,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Together>> {
    let (longest, needed) = (subject.context_tokens(), READ + WRITTEN);
    ensure!(longest >= needed, "a context of {longest} tokens: expected {needed} or more");
    let most = clients.iter().copied().max().unwrap_or(0);
    let batching = Batching::on_gpu(0, subject.lm(), most).context("--device cuda")?;
    let measured = clients.iter().map(|&n| {
        say(&format!("{n} clients"));
        let mut all = (0..n).map(|_| batching.client()).collect::<multicoder_model::Result<Vec<Client>>>()?;
        // The first round finds algorithms and makes graphs.
        let times = (0..=rounds).map(|_| round(subject, &mut all)).collect::<Result<Vec<_>>>()?;
        let (read_s, written_s) = (median(times[1..].iter().map(|of| of.0)), median(times[1..].iter().map(|of| of.1)));
        // The first token comes out of the prompt's own pass.
        let written = (WRITTEN - 1) as f64;
        Ok(Together {
            clients: n,
            read_per_s: (n * READ) as f64 / read_s,
            written_per_s: n as f64 * written / written_s,
            token_ms: 1e3 * written_s / written,
        })
    });
    measured.collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5).unwrap_or(f64::NAN)
}

/// Seconds that all prompts took, and then all that was written.
fn round(subject: &Subject, clients: &mut [Client]) -> Result<(f64, f64)> {
    let (language, n) = (subject.language(), clients.len());
    let meeting = Barrier::new(n + 1);
    let work = |(i, client): (usize, &mut Client)| {
        client.clear();
        let ids = subject.ids(READ + i).split_off(i);
        meeting.wait();
        let is_read = Cell::new(false);
        // Nobody writes while others still read.
        let meet = || {
            is_read.set(true);
            meeting.wait();
        };
        let answered = answer(&mut client.sequence(), language, (&ids, WRITTEN), &meet);
        // Others wait for who could not read, too.
        if !is_read.get() {
            meet();
        }
        answered.map(drop)
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = clients.iter_mut().enumerate().map(|one| scope.spawn(move || work(one))).collect();
        meeting.wait();
        let start = Instant::now();
        meeting.wait();
        let read = Instant::now();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(((read - start).as_secs_f64(), read.elapsed().as_secs_f64()))
    })
}
