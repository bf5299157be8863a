//! `textDocument/inlineCompletion`: ghost text. Silence is an empty list, never null: Neovim leaves the old ghost text at null.

use tower_lsp::gen_lsp_types::{
    InlineCompletionItem, InlineCompletionList, InlineCompletionParams, InlineCompletionResponse, Range,
};

use crate::engine::Channel;
use crate::handlers::{Caret, accepted_command, answer};
use crate::position;
use crate::state::State;

/// At most one item.
pub(crate) async fn handle(state: &State, params: InlineCompletionParams) -> InlineCompletionResponse {
    let at = params.text_document_position_params;
    let encoding = state.session().encoding;
    // With an item of the editor's own menu selected, the answer continues that item.
    let selected = params.context.selected_completion_info;
    let place = |snapshot: crate::documents::Snapshot| match &selected {
        Some(selected) => {
            let range = position::chars_at(&snapshot.text, selected.range, encoding);
            let char_idx = range.start + selected.text.chars().count();
            Caret { snapshot: snapshot.with_replaced(range, &selected.text), char_idx }
        }
        None => Caret { char_idx: position::char_at(&snapshot.text, at.position, encoding), snapshot },
    };
    let items = match answer(state, Channel::Inline, at.text_document.uri.0.as_str(), place).await {
        Ok(answer) => {
            let (range, before) = match &selected {
                Some(selected) => (selected.range, selected.text.as_str()),
                None => (Range { start: at.position, end: at.position }, ""),
            };
            vec![InlineCompletionItem {
                insert_text: format!("{before}{}", answer.text).into(),
                filter_text: None,
                range: Some(range),
                command: Some(accepted_command()),
            }]
        }
        Err(_) => Vec::new(),
    };
    InlineCompletionList { items }.into()
}
