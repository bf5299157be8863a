//! The server: which message goes to which handler, and how it is served over two streams.

use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tower_lsp::gen_lsp_types::*;
use tower_lsp::jsonrpc::Result;
use tower_lsp::{Client, ClientSocket, LanguageServer, LspService, Server};

use crate::completer::Loader;
use crate::eager::{CONCURRENCY, Eager};
use crate::engine::Engine;
use crate::handlers::{completion, inline_completion, lifecycle as start_and_end, text_document, workspace};
use crate::lifecycle::{self, Ended};
use crate::state::{Lifecycle, State};
use crate::wire::Frames;

/// One editor's server.
pub struct Backend {
    state: Arc<State>,
}

impl Backend {
    fn new(client: Client, engine: Engine, lifecycle: Arc<Lifecycle>) -> Backend {
        Backend { state: Arc::new(State::new(client, engine, lifecycle)) }
    }
}

impl LanguageServer for Backend {
    async fn initialize(&self, params: InitializeParams) -> Result<InitializeResult> {
        Ok(start_and_end::initialize(&self.state, params))
    }

    async fn initialized(&self, _: InitializedParams) {
        start_and_end::initialized(&self.state);
    }

    async fn shutdown(&self) -> Result<()> {
        start_and_end::shutdown(&self.state);
        Ok(())
    }
}

// The methods below are registered by name in `service`, which keeps out the many that are not served.
#[allow(clippy::unused_async, reason = "the library's handlers are async; notifications must not await")]
impl Backend {
    async fn did_open(&self, params: DidOpenTextDocumentParams) {
        text_document::did_open(&self.state, params);
    }

    async fn did_change(&self, params: DidChangeTextDocumentParams) {
        text_document::did_change(&self.state, params);
    }

    async fn did_close(&self, params: DidCloseTextDocumentParams) {
        text_document::did_close(&self.state, params);
    }

    async fn ignore(&self, _: LspAny) {}

    async fn inline_completion(&self, params: InlineCompletionParams) -> Result<InlineCompletionResponse> {
        Ok(inline_completion::handle(&self.state, params).await)
    }

    async fn completion(&self, params: CompletionParams) -> Result<CompletionResponse> {
        Ok(completion::handle(&self.state, params).await)
    }

    async fn did_change_configuration(&self, params: DidChangeConfigurationParams) {
        workspace::did_change_configuration(&self.state, &params);
    }

    async fn did_change_folders(&self, params: DidChangeWorkspaceFoldersParams) {
        workspace::did_change_folders(&self.state, &params);
    }

    async fn execute_command(&self, params: ExecuteCommandParams) -> Result<Option<LspAny>> {
        workspace::execute_command(&self.state, &params)
    }

    async fn did_partially_accept(&self, _: LspAny) {
        workspace::did_partially_accept(&self.state);
    }

    async fn status(&self) -> Result<Value> {
        Ok(workspace::status(&self.state))
    }
}

/// The service with every message in its order, and the socket for what the server sends by itself.
///
/// # Errors
/// The engine's thread cannot be started.
pub fn build(load: Loader) -> std::io::Result<(Eager<LspService<Backend>>, ClientSocket)> {
    service(load, Arc::new(Lifecycle::new()))
}

fn service(load: Loader, lifecycle: Arc<Lifecycle>) -> std::io::Result<(Eager<LspService<Backend>>, ClientSocket)> {
    let engine = Engine::start(load)?;
    let builder = LspService::build_with_lifecycle_methods(|client| Backend::new(client, engine, lifecycle));
    let (service, socket) = builder
        .custom_method("textDocument/didOpen", Backend::did_open)
        .custom_method("textDocument/didChange", Backend::did_change)
        .custom_method("textDocument/didSave", Backend::ignore)
        .custom_method("textDocument/didClose", Backend::did_close)
        .custom_method("textDocument/inlineCompletion", Backend::inline_completion)
        .custom_method("textDocument/completion", Backend::completion)
        .custom_method("textDocument/didShowCompletion", Backend::ignore)
        .custom_method("textDocument/didPartiallyAcceptCompletion", Backend::did_partially_accept)
        .custom_method("workspace/didChangeConfiguration", Backend::did_change_configuration)
        .custom_method("workspace/executeCommand", Backend::execute_command)
        .custom_method("workspace/didChangeWorkspaceFolders", Backend::did_change_folders)
        .custom_method("workspace/didChangeWatchedFiles", Backend::ignore)
        .custom_method("multicoder/status", Backend::status)
        .finish();
    Ok((Eager(service), socket))
}

/// Serves one editor until it says `exit`, closes `input`, or dies.
///
/// # Errors
/// The engine's thread cannot be started.
pub async fn serve<I, O>(input: I, output: O, load: Loader) -> std::io::Result<Ended>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite,
{
    let state = Arc::new(Lifecycle::new());
    let (service, socket) = service(load, state.clone())?;
    let (frames, end) = Frames::new(input);
    let server = Server::new(frames, output, socket).concurrency_level(CONCURRENCY);
    let ended = tokio::select! {
        biased;
        () = lifecycle::editor_gone(state.editor_pid.subscribe()) => Ended::EditorGone,
        () = lifecycle::input_closed(end) => Ended::InputClosed,
        () = server.serve(service) => Ended::Exit { after_shutdown: state.was_shut_down() },
    };
    tracing::info!(?ended, "serving ended");
    Ok(ended)
}
