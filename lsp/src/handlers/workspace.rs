//! Settings, commands, and the server's own messages.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tower_lsp::gen_lsp_types::{
    ConfigurationItem, DidChangeConfigurationParams, DidChangeWorkspaceFoldersParams, ExecuteCommandParams,
    Registration, WorkspaceFolder,
};
use tower_lsp::jsonrpc::{Error, Result};

use crate::capabilities::ACCEPTED_COMMAND;
use crate::config::{Layer, MenuItems, SECTION};
use crate::state::State;
use crate::uri;

/// Pushed settings count; those that the editor holds for us are asked for again.
pub(crate) fn did_change_configuration(state: &Arc<State>, params: &DidChangeConfigurationParams) {
    set(state, Layer::Pushed, &params.settings);
    if state.session().answers_configuration {
        pull_configuration(state);
    }
}

/// Asks the editor for our section, without waiting.
pub(crate) fn pull_configuration(state: &Arc<State>) {
    let state = state.clone();
    tokio::spawn(async move {
        let item = ConfigurationItem { scope_uri: None, section: Some(SECTION.to_string()) };
        match state.client.configuration(vec![item]).await {
            Ok(answers) => answers.iter().for_each(|answer| set(&state, Layer::Pulled, answer)),
            Err(error) => tracing::warn!(%error, "the editor does not answer workspace/configuration"),
        }
    });
}

/// Asks to be told of changed settings, without waiting.
pub(crate) fn register_configuration(state: &Arc<State>) {
    let state = state.clone();
    tokio::spawn(async move {
        let registration = Registration {
            id: "multicoder/configuration".to_string(),
            method: "workspace/didChangeConfiguration".to_string(),
            register_options: Some(json!({"section": SECTION})),
        };
        if let Err(error) = state.client.register_capability(vec![registration]).await {
            tracing::warn!(%error, "the editor refuses to tell of changed settings");
        }
    });
}

fn set(state: &State, layer: Layer, value: &Value) {
    let before = state.settings().completion_items;
    let mut messages = state.set_settings(layer, value);
    let after = state.settings().completion_items;
    let needs_restart = match after {
        MenuItems::Auto => before != MenuItems::Auto,
        MenuItems::Always => !state.session().offers_menu,
        MenuItems::Never => state.session().offers_menu,
    };
    if after != before && needs_restart {
        messages
            .push(format!("{SECTION}.completionItems: counts from the next start; set it in initializationOptions"));
    }
    state.warn(messages);
}

pub(crate) fn did_change_folders(state: &State, params: &DidChangeWorkspaceFoldersParams) {
    let paths = |folders: &[WorkspaceFolder]| -> Vec<PathBuf> {
        folders.iter().filter_map(|folder| uri::to_file(folder.uri.0.as_str())).collect()
    };
    state.project.change(&paths(&params.event.removed), paths(&params.event.added));
}

pub(crate) fn execute_command(state: &State, params: &ExecuteCommandParams) -> Result<Option<Value>> {
    if params.command != ACCEPTED_COMMAND {
        let message = format!("command {:?}: unknown, expected {ACCEPTED_COMMAND:?}", params.command);
        return Err(Error::invalid_params(message));
    }
    state.statistics.accepted();
    let item = params.arguments.iter().flatten().next();
    tracing::debug!(item = ?item, "accepted");
    Ok(None)
}

pub(crate) fn status(state: &State) -> Value {
    let loading = state.engine.loading().borrow().clone();
    state.statistics.report(&loading, state.documents.len())
}

/// A message of Copilot's protocol that some editors send to every server: the user took a part of an item.
pub(crate) fn did_partially_accept(state: &State) {
    state.statistics.partly_accepted();
}
