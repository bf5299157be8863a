//! What the editor says it can do, and what the server says in return.

use std::path::PathBuf;

use tower_lsp::gen_lsp_types::{
    ClientCapabilities, CompletionOptions, ExecuteCommandOptions, InitializeParams, InitializeResult,
    ServerCapabilities, ServerInfo, TextDocumentSyncKind, TextDocumentSyncOptions, WorkspaceFolders,
    WorkspaceFoldersServerCapabilities, WorkspaceOptions,
};

use crate::config::{MenuItems, Settings};
use crate::position::Encoding;
use crate::uri;

/// The command that an accepted item runs, with the item's name as its argument.
pub const ACCEPTED_COMMAND: &str = "multicoder.accepted";

/// What a menu should open at, besides letters.
const TRIGGER_CHARACTERS: [&str; 6] = [".", ":", "(", "[", "=", " "];

/// What is known of one editor.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Session {
    pub encoding: Encoding,
    /// Answers `workspace/configuration`.
    pub answers_configuration: bool,
    /// Wants to be asked for `workspace/didChangeConfiguration`.
    pub registers_configuration: bool,
    pub shows_progress: bool,
    /// Whether completions are also offered as items of the completion menu.
    pub offers_menu: bool,
}

impl Session {
    /// What `initialize` says, read with the settings that came with it.
    pub fn new(client: &ClientCapabilities, settings: &Settings) -> Session {
        let workspace = client.workspace.as_ref();
        let offered = client.general.as_ref().and_then(|general| general.position_encodings.as_deref());
        let shows_inline = client.text_document.as_ref().is_some_and(|text| text.inline_completion.is_some());
        Session {
            encoding: Encoding::choose(offered),
            answers_configuration: workspace.and_then(|workspace| workspace.configuration) == Some(true),
            registers_configuration: workspace
                .and_then(|workspace| workspace.did_change_configuration.as_ref()?.dynamic_registration)
                == Some(true),
            shows_progress: client.window.as_ref().and_then(|window| window.work_done_progress) == Some(true),
            offers_menu: match settings.completion_items {
                MenuItems::Auto => !shows_inline,
                MenuItems::Always => true,
                MenuItems::Never => false,
            },
        }
    }
}

/// The editor's process id, where it gives one.
pub(crate) fn editor_pid(params: &InitializeParams) -> Option<u32> {
    params.process_id.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0)
}

/// The folders that are open; an editor that knows of one alone gives its root.
pub(crate) fn folders(params: &InitializeParams) -> Vec<PathBuf> {
    #[allow(deprecated, reason = "some editors give nothing else")]
    let root = params.root_uri.as_ref();
    let uris = match &params.workspace_folders_initialize_params.workspace_folders {
        Some(WorkspaceFolders::WorkspaceFolderList(folders)) => folders.iter().map(|folder| &folder.uri).collect(),
        Some(WorkspaceFolders::Null) | None => Vec::from_iter(root),
    };
    uris.into_iter().filter_map(|folder| uri::to_file(folder.0.as_str())).collect()
}

/// The answer to `initialize`. All is registered statically: some editors know nothing else.
pub(crate) fn initialize_result(session: &Session) -> InitializeResult {
    let completion = CompletionOptions {
        trigger_characters: Some(TRIGGER_CHARACTERS.map(str::to_string).to_vec()),
        resolve_provider: Some(false),
        ..CompletionOptions::default()
    };
    let sync = TextDocumentSyncOptions {
        open_close: Some(true),
        change: Some(TextDocumentSyncKind::Incremental),
        ..TextDocumentSyncOptions::default()
    };
    InitializeResult {
        capabilities: ServerCapabilities {
            position_encoding: Some(session.encoding.kind()),
            text_document_sync: Some(sync.into()),
            // `true`, not options: an empty object is nothing in lsp-mode.
            inline_completion_provider: Some(true.into()),
            completion_provider: session.offers_menu.then_some(completion),
            execute_command_provider: Some(ExecuteCommandOptions {
                commands: vec![ACCEPTED_COMMAND.to_string()],
                ..ExecuteCommandOptions::default()
            }),
            workspace: Some(WorkspaceOptions {
                workspace_folders: Some(WorkspaceFoldersServerCapabilities {
                    supported: Some(true),
                    change_notifications: Some(true.into()),
                }),
                ..WorkspaceOptions::default()
            }),
            ..ServerCapabilities::default()
        },
        server_info: Some(ServerInfo {
            name: "multicoder-lsp".to_string(),
            version: Some(env!("CARGO_PKG_VERSION").to_string()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn session(client: Value, options: Value) -> Session {
        let mut settings = Settings::standard();
        settings.merge(&options);
        Session::new(&serde_json::from_value(client).unwrap(), &settings)
    }

    #[test]
    fn reads_what_the_editor_announces() {
        let client = json!({
            "general": {"positionEncodings": ["utf-16", "utf-8"]},
            "workspace": {"configuration": true, "didChangeConfiguration": {"dynamicRegistration": true}},
            "window": {"workDoneProgress": true},
            "textDocument": {"inlineCompletion": {}},
        });
        let session = session(client, Value::Null);
        assert_eq!(session.encoding, Encoding::Utf8);
        assert!(session.answers_configuration && session.registers_configuration && session.shows_progress);
        assert!(!session.offers_menu);
    }

    #[test]
    fn menu_items_are_for_editors_without_inline_completion_unless_set() {
        assert!(session(json!({}), Value::Null).offers_menu);
        assert!(!session(json!({}), json!({"completionItems": "never"})).offers_menu);
        let inline = json!({"textDocument": {"inlineCompletion": {"dynamicRegistration": false}}});
        assert!(!session(inline.clone(), Value::Null).offers_menu);
        assert!(session(inline, json!({"completionItems": "always"})).offers_menu);
    }

    #[test]
    fn announces_inline_completion_as_true() {
        let result =
            serde_json::to_value(initialize_result(&Session { offers_menu: true, ..Session::default() })).unwrap();
        let capabilities = &result["capabilities"];
        assert_eq!(capabilities["inlineCompletionProvider"], json!(true));
        assert_eq!(capabilities["textDocumentSync"]["change"], json!(2));
        assert_eq!(capabilities["positionEncoding"], json!("utf-16"));
        assert!(capabilities["completionProvider"].is_object());
    }
}
