//! One handler a message. They take what they need of the state before they await anything.

pub(crate) mod completion;
pub(crate) mod inline_completion;
pub(crate) mod lifecycle;
pub(crate) mod text_document;
pub(crate) mod workspace;

use std::sync::Arc;

use tower_lsp::gen_lsp_types::{Command, MessageType};

use crate::capabilities::ACCEPTED_COMMAND;
use crate::complete::{self, Answer};
use crate::config::Settings;
use crate::documents::Snapshot;
use crate::engine::{Channel, Others};
use crate::reason::{Reason, Silence};
use crate::state::State;
use crate::status::Decision;
use crate::uuid;

/// Other open documents that the engine hears of; some of them it may have to leave alone.
const MAX_OTHERS: usize = 32;

/// A caret in a document that is open.
struct Caret {
    snapshot: Snapshot,
    char_idx: usize,
}

/// The answer for `place(document)`, or a silence, either of them taken down.
async fn answer(
    state: &State,
    channel: Channel,
    uri: &str,
    place: impl FnOnce(Snapshot) -> Caret,
) -> Result<Answer, Silence> {
    let mut record = Record { state, channel, uri, outcome: None };
    let outcome = answer_unrecorded(state, channel, uri, place).await;
    if let Err(silence) = &outcome
        && matches!(silence.reason, Reason::EngineFailed | Reason::EnginePanicked)
    {
        state.log(MessageType::Error, format!("no completion: {silence}"));
    }
    record.outcome = Some(outcome.clone());
    outcome
}

async fn answer_unrecorded(
    state: &State,
    channel: Channel,
    uri: &str,
    place: impl FnOnce(Snapshot) -> Caret,
) -> Result<Answer, Silence> {
    let snapshot = state.documents.snapshot(uri).ok_or(Reason::NotOpen)?;
    let revision = snapshot.revision;
    let caret = place(snapshot);
    let settings = state.settings();
    let request = complete::request(&caret.snapshot, caret.char_idx, &settings)?;
    let pending = state.engine.submit(channel, request);
    state.engine.offer(to_guess_from(state, &caret.snapshot, settings));
    let answer = pending.await?;
    match state.documents.revision(uri) {
        Some(now) if now == revision => Ok(answer),
        now => Err(Reason::Stale.because(format_args!("made for revision {revision}, now {now:?}"))),
    }
}

fn to_guess_from(state: &State, document: &Snapshot, settings: Arc<Settings>) -> Others {
    let newest_first = state.documents.to_guess_from(&document.uri, MAX_OTHERS);
    let nearest_first = if settings.read_project { state.project.near(document, &settings) } else { Arc::default() };
    Others { newest_first, nearest_first, settings }
}

/// Takes the decision down when it falls, also when that is the editor's cancelling.
struct Record<'a> {
    state: &'a State,
    channel: Channel,
    uri: &'a str,
    outcome: Option<Result<Answer, Silence>>,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Err(Reason::Cancelled.into()));
        self.state.statistics.record(Decision::new(self.uri, self.channel, outcome.as_ref()));
    }
}

/// What the editor runs when it has inserted an item.
fn accepted_command() -> Command {
    Command {
        title: "multicoder: accepted".to_string(),
        tooltip: None,
        command: ACCEPTED_COMMAND.to_string(),
        arguments: Some(vec![uuid::new().into()]),
    }
}
