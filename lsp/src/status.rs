//! What the server did last and how often: the answer to `multicoder/status`. Nothing of it leaves the machine.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use crate::complete::Answer;
use crate::engine::{Channel, Loading};
use crate::reason::Silence;

/// What was decided about one request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    pub uri: String,
    pub channel: &'static str,
    /// "shown", or the code of the silence.
    pub code: &'static str,
    /// What is particular to a silence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerFigures>,
}

/// The figures of a shown answer, without its text.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerFigures {
    pub language: Option<&'static str>,
    pub expert: Option<String>,
    pub tokens: usize,
    pub prompt_tokens: usize,
    pub prefilled_tokens: usize,
    pub probability: f32,
    pub elapsed_ms: f64,
    pub is_reused: bool,
}

impl From<&Answer> for AnswerFigures {
    fn from(answer: &Answer) -> AnswerFigures {
        AnswerFigures {
            language: answer.language,
            expert: answer.expert.clone(),
            tokens: answer.tokens,
            prompt_tokens: answer.prompt_tokens,
            prefilled_tokens: answer.prefilled_tokens,
            probability: answer.probability,
            elapsed_ms: answer.elapsed.as_secs_f64() * 1e3,
            is_reused: answer.is_reused,
        }
    }
}

impl Decision {
    /// The decision about a request of `uri`.
    pub fn new(uri: &str, channel: Channel, outcome: Result<&Answer, &Silence>) -> Decision {
        let channel = match channel {
            Channel::Inline => "inline",
            Channel::Menu => "menu",
        };
        let (code, detail) = match outcome {
            Ok(_) => ("shown", String::new()),
            Err(silence) => (silence.reason.code(), silence.detail.clone()),
        };
        let answer = outcome.ok().map(AnswerFigures::from);
        Decision { uri: uri.to_string(), channel, code, detail, answer }
    }
}

#[derive(Debug, Default)]
struct Counts {
    by_code: BTreeMap<&'static str, u64>,
    accepted: u64,
    partly_accepted: u64,
    last: Option<Decision>,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Statistics {
    counts: Mutex<Counts>,
}

impl Statistics {
    /// Takes a decision down.
    pub fn record(&self, decision: Decision) {
        tracing::debug!(decision.code, decision.detail, decision.uri, "decided");
        let mut counts = self.lock();
        *counts.by_code.entry(decision.code).or_default() += 1;
        counts.last = Some(decision);
    }

    /// An item was accepted whole.
    pub fn accepted(&self) {
        self.lock().accepted += 1;
    }

    /// A part of an item was accepted.
    pub fn partly_accepted(&self) {
        self.lock().partly_accepted += 1;
    }

    /// The status, as the editor gets it.
    pub fn report(&self, loading: &Loading, n_documents: usize) -> Value {
        let counts = self.lock();
        let (loaded, model, error) = match loading {
            Loading::Running => ("loading", None, None),
            Loading::Ready(info) => ("ready", Some(info), None),
            Loading::Failed(why) => ("failed", None, Some(why)),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "loaded": loaded,
            "model": model,
            "device": model.map(|model| model.device.as_str()),
            "error": error,
            "documents": n_documents,
            "decisions": counts.by_code,
            "accepted": counts.accepted,
            "partlyAccepted": counts.partly_accepted,
            "lastDecision": counts.last,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    #[test]
    fn reports_the_last_decision_and_the_counts() {
        let statistics = Statistics::default();
        let silence = Reason::ExcludedFile.because(".env*");
        statistics.record(Decision::new("file:///.env", Channel::Inline, Err(&silence)));
        statistics.record(Decision::new("file:///.env", Channel::Menu, Err(&silence)));
        statistics.accepted();
        let report = statistics.report(&Loading::Running, 1);
        assert_eq!(report["decisions"]["excluded_file"], 2);
        assert_eq!(report["lastDecision"]["detail"], ".env*");
        assert_eq!((&report["accepted"], &report["loaded"]), (&json!(1), &json!("loading")));
    }
}
