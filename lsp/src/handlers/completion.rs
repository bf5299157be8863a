//! `textDocument/completion`: the same answer as one item of the completion menu, for editors without inline completion.

use tower_lsp::gen_lsp_types::{
    CompletionItem, CompletionItemKind, CompletionList, CompletionParams, CompletionResponse, InsertTextFormat,
    InsertTextMode, Range, TextEdit,
};

use crate::complete::Answer;
use crate::engine::Channel;
use crate::handlers::{Caret, accepted_command, answer};
use crate::position::{self, Encoding};
use crate::state::State;

/// Characters of a label.
const LABEL_CHARS: usize = 60;

/// At most one item. The list is never complete: the next keystroke may bring another.
pub(crate) async fn handle(state: &State, params: CompletionParams) -> CompletionResponse {
    let at = params.text_document_position_params;
    let session = state.session();
    let encoding = session.encoding;
    let mut word = None;
    let place = |snapshot: crate::documents::Snapshot| {
        let char_idx = position::char_at(&snapshot.text, at.position, encoding);
        word = Some(Word::before(&snapshot.text, char_idx, encoding));
        Caret { snapshot, char_idx }
    };
    let answered = match session.offers_menu {
        true => answer(state, Channel::Menu, at.text_document.uri.0.as_str(), place).await.ok(),
        false => None,
    };
    let items = answered.zip(word).map(|(answer, word)| item(&answer, word)).into_iter().collect();
    CompletionList { is_incomplete: true, item_defaults: None, apply_kind: None, items }.into()
}

/// The word that ends at the caret: menus filter by it, so that the item replaces it.
struct Word {
    range: Range,
    text: String,
}

impl Word {
    fn before(text: &ropey::Rope, caret_char: usize, encoding: Encoding) -> Word {
        let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
        let len = text.chars_at(caret_char).reversed().take_while(is_word).count();
        let start = caret_char - len;
        let place = |char_idx| position::position_of(text, char_idx, encoding);
        Word {
            range: Range { start: place(start), end: place(caret_char) },
            text: text.slice(start..caret_char).to_string(),
        }
    }
}

fn item(answer: &Answer, word: Word) -> CompletionItem {
    let new_text = format!("{}{}", word.text, answer.text);
    let first_line = new_text.trim_start().lines().next().unwrap_or_default();
    CompletionItem {
        label: first_line.chars().take(LABEL_CHARS).collect(),
        kind: Some(CompletionItemKind::Text),
        detail: Some(format!("multicoder, {:.0} %", answer.probability * 100.0)),
        sort_text: Some("0".to_string()),
        // What stands before the caret: an item must begin so for editors to keep it.
        filter_text: Some(if word.text.is_empty() {
            new_text.clone()
        } else {
            word.text.clone() + answer.text.trim_end()
        }),
        insert_text_format: Some(InsertTextFormat::PlainText),
        insert_text_mode: Some(InsertTextMode::AsIs),
        text_edit: Some(TextEdit { range: word.range, new_text }.into()),
        command: Some(accepted_command()),
        ..CompletionItem::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ropey::Rope;
    use tower_lsp::gen_lsp_types::Position;

    #[test]
    fn the_word_before_the_caret_is_replaced() {
        let rope = Rope::from_str("let \u{1f600} = na\u{ef}ve_x");
        let word = Word::before(&rope, rope.len_chars(), Encoding::Utf16);
        assert_eq!(word.text, "na\u{ef}ve_x");
        assert_eq!(word.range.start, Position { line: 0, character: 9 });
        assert_eq!(Word::before(&rope, 4, Encoding::Utf8).text, "");
    }
}
