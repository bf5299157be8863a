//! What the handlers share: documents, engine, settings, and what is known of the editor.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;
use tokio::sync::watch;
use tower_lsp::Client;
use tower_lsp::gen_lsp_types::MessageType;

use crate::capabilities::Session;
use crate::config::{Layer, Layers, Settings};
use crate::documents::Documents;
use crate::engine::Engine;
use crate::project::Project;
use crate::status::Statistics;

/// The state of one server.
pub(crate) struct State {
    pub(crate) client: Client,
    pub(crate) documents: Documents,
    pub(crate) project: Project,
    pub(crate) engine: Engine,
    pub(crate) statistics: Statistics,
    pub(crate) lifecycle: Arc<Lifecycle>,
    settings: Mutex<Layers>,
    session: OnceLock<Session>,
    /// What cannot be said before the editor is ready to hear it.
    held_messages: Mutex<Vec<String>>,
}

/// What `main` has to know to end rightly.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    pub(crate) shutdown_was_asked: AtomicBool,
    /// The editor's process, once it has said it.
    pub(crate) editor_pid: watch::Sender<Option<u32>>,
}

impl Lifecycle {
    pub(crate) fn new() -> Lifecycle {
        Lifecycle { shutdown_was_asked: AtomicBool::new(false), editor_pid: watch::Sender::new(None) }
    }

    pub(crate) fn was_shut_down(&self) -> bool {
        self.shutdown_was_asked.load(Ordering::SeqCst)
    }
}

impl State {
    pub(crate) fn new(client: Client, engine: Engine, lifecycle: Arc<Lifecycle>) -> State {
        State {
            client,
            documents: Documents::default(),
            project: Project::default(),
            engine,
            statistics: Statistics::default(),
            lifecycle,
            settings: Mutex::default(),
            session: OnceLock::new(),
            held_messages: Mutex::default(),
        }
    }

    /// The settings as they are now.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).settings()
    }

    /// Replaces what one source of settings says and returns what was wrong with it.
    pub(crate) fn set_settings(&self, layer: Layer, value: &Value) -> Vec<String> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).set(layer, value)
    }

    /// What is known of the editor; before `initialize` what holds for one that announces nothing.
    pub(crate) fn session(&self) -> Session {
        self.session.get().copied().unwrap_or_default()
    }

    /// Keeps what `initialize` said; the first one counts.
    pub(crate) fn begin_session(&self, session: Session) {
        let _ = self.session.set(session);
    }

    /// Keeps messages until [`State::release_messages`].
    pub(crate) fn hold_messages(&self, messages: Vec<String>) {
        self.held_messages.lock().unwrap_or_else(PoisonError::into_inner).extend(messages);
    }

    /// Sends the kept messages as warnings.
    pub(crate) fn release_messages(&self) {
        let messages = std::mem::take(&mut *self.held_messages.lock().unwrap_or_else(PoisonError::into_inner));
        self.warn(messages);
    }

    /// Logs warnings at the editor.
    pub(crate) fn warn(&self, messages: Vec<String>) {
        for message in messages {
            self.log(MessageType::Warning, message);
        }
    }

    /// Logs at the editor, without waiting for it.
    pub(crate) fn log(&self, kind: MessageType, message: String) {
        let client = self.client.clone();
        tokio::spawn(async move { client.log_message(kind, message).await });
    }
}
