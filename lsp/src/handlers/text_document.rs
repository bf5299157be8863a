//! Documents opened, changed and closed. These never await: the text is stored before the next message is read.

use tower_lsp::gen_lsp_types::{DidChangeTextDocumentParams, DidCloseTextDocumentParams, DidOpenTextDocumentParams};

use crate::state::State;

pub(crate) fn did_open(state: &State, params: DidOpenTextDocumentParams) {
    let document = params.text_document;
    state.documents.open(document.uri.0.as_str(), document.language_id.as_str(), document.version, &document.text);
}

pub(crate) fn did_change(state: &State, params: DidChangeTextDocumentParams) {
    let uri = params.text_document.text_document_identifier.uri;
    let encoding = state.session().encoding;
    if !state.documents.change(uri.0.as_str(), params.text_document.version, params.content_changes, encoding) {
        tracing::warn!(uri = uri.0.as_str(), "a change to a document that is not open");
    }
}

pub(crate) fn did_close(state: &State, params: DidCloseTextDocumentParams) {
    let uri = params.text_document.uri;
    state.documents.close(uri.0.as_str());
    state.engine.forget(uri.0.as_str());
}
