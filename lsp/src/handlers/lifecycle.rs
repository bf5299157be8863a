//! From `initialize` to `shutdown`, and the news of the model's loading.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tower_lsp::gen_lsp_types::{InitializeParams, InitializeResult, MessageType, ProgressToken};

use crate::capabilities::{self, Session};
use crate::config::Layer;
use crate::engine::Loading;
use crate::handlers::workspace;
use crate::state::State;

pub(crate) fn initialize(state: &State, params: InitializeParams) -> InitializeResult {
    if let Some(options) = &params.initialization_options {
        state.hold_messages(state.set_settings(Layer::Initial, options));
    }
    let session = Session::new(&params.capabilities, &state.settings());
    state.begin_session(session);
    state.project.change(&[], capabilities::folders(&params));
    if let Some(pid) = capabilities::editor_pid(&params) {
        state.lifecycle.editor_pid.send_replace(Some(pid));
    }
    capabilities::initialize_result(&session)
}

pub(crate) fn initialized(state: &Arc<State>) {
    state.release_messages();
    let session = state.session();
    if session.registers_configuration {
        workspace::register_configuration(state);
    }
    if session.answers_configuration {
        workspace::pull_configuration(state);
    }
    tokio::spawn(report_loading(state.clone()));
}

pub(crate) fn shutdown(state: &State) {
    state.lifecycle.shutdown_was_asked.store(true, Ordering::SeqCst);
    state.engine.close();
}

/// Shows progress while the model loads, and says how it ended.
async fn report_loading(state: Arc<State>) {
    let mut loading = state.engine.loading();
    let is_running = |loading: &Loading| matches!(loading, Loading::Running);
    let begins_late = is_running(&loading.borrow());
    let mut progress = None;
    if begins_late && state.session().shows_progress {
        let token = ProgressToken::String("multicoder/loading".to_string());
        if state.client.create_work_done_progress(token.clone()).await.is_ok() {
            progress = Some(state.client.progress(token, "multicoder: loading the model").begin().await);
        }
    }
    let Ok(loaded) = loading.wait_for(|loading| !is_running(loading)).await.map(|loading| loading.clone()) else {
        return;
    };
    if let Some(progress) = progress {
        progress.finish().await;
    }
    match loaded {
        Loading::Ready(info) => {
            let text = format!("{} ({}) on {}, {} ms", info.name, info.origin, info.device, info.load_time.as_millis());
            state.client.log_message(MessageType::Info, text).await;
        }
        Loading::Failed(why) => state.client.log_message(MessageType::Error, format!("no completions: {why}")).await,
        Loading::Running => {}
    }
}
