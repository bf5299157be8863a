//! How fast a model is read and written with, beside llama.cpp with the same weights: in turn, at rest and beside a busy neighbour.

mod batched;
mod llama_cpp;
mod memory;
mod neighbour;
mod ours;
mod roofline;
mod subject;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use llama_cpp::LlamaCpp;
use neighbour::Neighbour;
use ours::Ours;

use crate::quantile::quantile;

pub use batched::{Together, together};
pub use neighbour::spin;
pub use roofline::{Point, Roofline};
pub use subject::{SHAPES, Shape, Subject, Weights};

/// Tokens of a prompt that is read, that are written after next to nothing, and that are written for a key.
const READ: usize = 512;
const SHORT: usize = 16;
const WRITTEN: usize = 64;
const KEY_WRITTEN: usize = 24;
/// Tokens of the text around a caret before the first key, where the model's context has room for them.
const TEXT: usize = 2003;

/// What is asked of a program: to continue `ids` greedily by `n_new` tokens.
#[derive(Clone, Copy, Debug, Serialize)]
struct Request<'a> {
    ids: &'a [u32],
    n_new: usize,
    /// Whether what was computed before may be gone on from.
    is_cached: bool,
    /// Whether the answer's tokens are wanted, which may take time.
    wants_ids: bool,
}

/// What it took, in seconds.
#[derive(Clone, Debug, Deserialize)]
struct Answer {
    ids: Vec<u32>,
    /// Tokens of the prompt that were computed.
    prompt_tokens: usize,
    prompt_s: f64,
    /// The first of them comes out of the prompt's own pass.
    written_tokens: usize,
    written_s: f64,
    elapsed_s: f64,
}

impl Answer {
    fn written_per_s(&self) -> f64 {
        (self.written_tokens.saturating_sub(1)) as f64 / self.written_s.max(1e-9)
    }
}

/// Whoever has the weights.
trait Program {
    fn answer(&mut self, request: Request) -> Result<Answer>;
}

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    pub weights: Vec<Weights>,
    pub threads: Vec<usize>,
    /// Also beside another process that keeps a core busy.
    pub is_busy: bool,
    pub rounds: usize,
    /// Keys that are typed in each round.
    pub keys: usize,
    /// Also what memory and arithmetic allow.
    pub has_roofline: bool,
    /// A Python with llama.cpp, to compare with it.
    pub llama_cpp: Option<PathBuf>,
}

/// One format of the weights, so many threads, a neighbour or none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Setting {
    pub weights: Weights,
    pub threads: usize,
    pub is_busy: bool,
}

/// One program in one setting: medians of the rounds, and of all their keys.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub setting: Setting,
    pub program: &'static str,
    /// Tokens a second of a prompt.
    pub read_per_s: f64,
    /// Tokens a second after next to nothing, and after the text.
    pub written_per_s: f64,
    pub late_per_s: f64,
    /// Share of the memory's speed that the weights alone take at `written_per_s`; above 1 where a cache holds them.
    pub memory_share: f64,
    /// The first answer to the text, and one after each further token: milliseconds.
    pub cold_ms: f64,
    pub key_p50_ms: f64,
    pub key_p95_ms: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub text_tokens: usize,
    pub rounds: usize,
    /// By threads: how fast memory is read, in gigabytes a second.
    pub memory_gb_per_s: Vec<(usize, f64)>,
    /// What the peer calls its version.
    pub llama_cpp: Option<String>,
    /// Of the tokens that both wrote after the text, how many are the same, by format of the weights.
    pub agreed: Vec<(Weights, usize, usize)>,
    pub rows: Vec<Row>,
    pub roofline: Option<Roofline>,
}

/// Measures. `says` gets a line before each part.
///
/// # Errors
/// A model that is too short to be measured or that llama.cpp has no architecture for; a peer that does not start or answer.
pub fn bench(subject: &Subject, plan: &Plan, says: &mut dyn FnMut(&str)) -> Result<Report> {
    ensure!(plan.rounds > 0 && plan.keys > 0, "--rounds and --keys: expected at least 1");
    let context = subject.context_tokens();
    let text_tokens = TEXT.min(context.saturating_sub(plan.keys + KEY_WRITTEN + 1));
    ensure!(text_tokens >= WRITTEN, "the model's context has {context} tokens: expected some hundred more than --keys");
    let contest = Contest { ids: subject.ids(text_tokens + plan.keys), text_tokens, keys: plan.keys };
    let memory_gb_per_s = plan.threads.iter().map(|&threads| (threads, memory::gb_per_s(threads))).collect::<Vec<_>>();
    let mut report = Report {
        model: subject.name.clone(),
        text_tokens,
        rounds: plan.rounds,
        memory_gb_per_s,
        llama_cpp: None,
        agreed: Vec::new(),
        rows: Vec::new(),
        roofline: None,
    };
    for &weights in &plan.weights {
        says(&format!("{}: packed{}", weights.name(), if plan.llama_cpp.is_some() { ", exported" } else { "" }));
        let mut pairs = pairs(subject, weights, plan)?;
        if let Some(peer) = pairs.first_mut().and_then(|pair| pair.peer.as_mut().map(|peer| (&mut pair.ours, peer))) {
            let (same, of) = contest.agreed(peer.0, peer.1)?;
            report.agreed.push((weights, same, of));
            report.llama_cpp = Some(peer.1.version.clone());
        }
        for is_busy in [false, true].into_iter().filter(|is_busy| !is_busy || plan.is_busy) {
            contest.run(subject, (weights, is_busy), plan.rounds, &mut pairs, (&mut report, says))?;
        }
    }
    if plan.has_roofline {
        says("roofline");
        report.roofline = Some(Roofline::measure(subject, &plan.weights)?);
    }
    Ok(report)
}

/// Both programs with so many threads.
struct Pair {
    threads: usize,
    ours: Ours,
    peer: Option<LlamaCpp>,
}

fn pairs(subject: &Subject, weights: Weights, plan: &Plan) -> Result<Vec<Pair>> {
    let decoder = subject.decoder(weights)?;
    let exported = plan.llama_cpp.as_ref().map(|_| subject.export(weights)).transpose()?;
    let pair = |&threads: &usize| {
        let start = |python| LlamaCpp::start(python, exported.as_ref(), threads, subject.context_tokens());
        let peer = plan.llama_cpp.as_deref().map(start).transpose()?;
        Ok(Pair { threads, ours: Ours::new(decoder.clone(), threads, subject.language()), peer })
    };
    plan.threads.iter().map(pair).collect()
}

/// The same work for everyone.
struct Contest {
    ids: Vec<u32>,
    text_tokens: usize,
    keys: usize,
}

/// What a program did in the rounds of a setting.
#[derive(Default)]
struct Times {
    read_per_s: Vec<f64>,
    written_per_s: Vec<f64>,
    late_per_s: Vec<f64>,
    cold_ms: Vec<f64>,
    key_ms: Vec<f64>,
}

impl Contest {
    /// How many of the tokens that both write after the text are the same, and of how many.
    fn agreed(&self, ours: &mut Ours, peer: &mut LlamaCpp) -> Result<(usize, usize)> {
        let ids = &self.ids[..self.text_tokens];
        let request = Request { ids, n_new: KEY_WRITTEN, is_cached: false, wants_ids: true };
        let (a, b) = (ours.answer(request)?.ids, peer.answer(request)?.ids);
        Ok((a.iter().zip(&b).take_while(|(a, b)| a == b).count(), a.len()))
    }

    fn run(
        &self,
        subject: &Subject,
        (weights, is_busy): (Weights, bool),
        rounds: usize,
        pairs: &mut [Pair],
        (report, says): (&mut Report, &mut dyn FnMut(&str)),
    ) -> Result<()> {
        let _neighbour = is_busy.then(Neighbour::start).transpose()?;
        let mut times: Vec<[Times; 2]> = pairs.iter().map(|_| Default::default()).collect();
        for round in 0..rounds {
            let beside = if is_busy { ", a core busy" } else { "" };
            says(&format!("{}{beside}: round {} of {rounds}", weights.name(), round + 1));
            for (Pair { ours, peer, .. }, times) in pairs.iter_mut().zip(&mut times) {
                let mut programs: Vec<(&mut dyn Program, &mut Times)> = Vec::new();
                let [of_ours, of_peer] = times;
                programs.push((ours, of_ours));
                programs.extend(peer.as_mut().map(|peer| (peer as &mut dyn Program, of_peer)));
                if round % 2 == 1 {
                    programs.reverse();
                }
                programs.into_iter().try_for_each(|(program, times)| self.round(program, times))?;
            }
        }
        for (pair, times) in pairs.iter().zip(times) {
            let setting = Setting { weights, threads: pair.threads, is_busy };
            let speed = report.memory_gb_per_s.iter().find(|(threads, _)| *threads == pair.threads);
            let per_token = subject.gb_per_token(weights) / speed.context("a speed of memory")?.1;
            let names = ["multicoder", "llama.cpp"];
            let there = names.into_iter().zip(times).take(1 + usize::from(pair.peer.is_some()));
            report.rows.extend(there.map(|(program, times)| times.row(setting, program, per_token)));
        }
        Ok(())
    }

    fn round(&self, program: &mut dyn Program, times: &mut Times) -> Result<()> {
        // What the other one left running has come to rest.
        std::thread::sleep(Duration::from_millis(50));
        let ask = |n_ids: usize, n_new: usize, is_cached: bool| Request {
            ids: &self.ids[..n_ids],
            n_new,
            is_cached,
            wants_ids: false,
        };
        let read = program.answer(ask(READ.min(self.text_tokens), 1, false))?;
        times.read_per_s.push(read.prompt_tokens as f64 / read.prompt_s.max(1e-9));
        times.written_per_s.push(program.answer(ask(SHORT, WRITTEN + 1, false))?.written_per_s());
        times.cold_ms.push(program.answer(ask(self.text_tokens, KEY_WRITTEN, false))?.elapsed_s * 1e3);
        for key in 1..=self.keys {
            let answer = program.answer(ask(self.text_tokens + key, KEY_WRITTEN, true))?;
            times.key_ms.push(answer.elapsed_s * 1e3);
            times.late_per_s.push(answer.written_per_s());
        }
        Ok(())
    }
}

impl Times {
    fn row(self, setting: Setting, program: &'static str, memory_s_per_token: f64) -> Row {
        let written_per_s = at(self.written_per_s, 0.5);
        Row {
            setting,
            program,
            read_per_s: at(self.read_per_s, 0.5),
            written_per_s,
            late_per_s: at(self.late_per_s, 0.5),
            memory_share: written_per_s * memory_s_per_token,
            cold_ms: at(self.cold_ms, 0.5),
            key_p50_ms: at(self.key_ms.clone(), 0.5),
            key_p95_ms: at(self.key_ms, 0.95),
        }
    }
}

fn at(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, share).unwrap_or(f64::NAN)
}
