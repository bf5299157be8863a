//! The syntax tree of one document, and the questions that training and completion ask of it.
//!
//! The answers come from node kinds by their names ([`kind`]), which the grammars choose alike, and not from per-language
//! tables. Offsets are bytes of the UTF-8 text; a caret stands before the byte of its offset. Trees may be as deep as the
//! text is long, so every walk is a loop over a cursor and none recurses.

use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use tree_sitter::{InputEdit, Node, ParseOptions, Parser, Point, Tree};

use crate::language::LanguageId;
use crate::lexical;

pub mod kind;

use kind::Role;

/// Longest text that is parsed. Longer files are data or generated.
pub const MAX_TEXT_BYTES: usize = 32 << 20;

/// Time after which [`SyntaxTree::parse`] gives up.
pub const PARSE_BUDGET: Duration = Duration::from_secs(5);

/// A budget for what must not depend on the clock: far beyond what any file takes.
pub const UNHURRIED: Duration = Duration::from_secs(3600);

/// A parsed document together with the text that it was parsed from.
pub struct SyntaxTree {
    language: LanguageId,
    text: String,
    tree: Tree,
}

impl SyntaxTree {
    /// Parses `text`. `None` when the language has no grammar, the text is longer than [`MAX_TEXT_BYTES`], or parsing
    /// takes longer than [`PARSE_BUDGET`]. Wrong syntax is no failure: it gives error nodes.
    pub fn parse(language: LanguageId, text: &str) -> Option<Self> {
        Self::parse_within(language, text, PARSE_BUDGET)
    }

    /// As [`SyntaxTree::parse`], giving up after `budget`.
    pub fn parse_within(language: LanguageId, text: &str, budget: Duration) -> Option<Self> {
        let tree = parse_text(language, text, None, budget)?;
        Some(Self { language, text: text.to_owned(), tree })
    }

    /// Replaces the bytes `start_byte..old_end_byte` by `new_text` and parses again what that changed. `new_end_byte` is
    /// `start_byte + new_text.len()`.
    ///
    /// Returns false and changes nothing when the range is not one of this text (past its end, inside a character, or
    /// `new_end_byte` does not fit `new_text`) or when parsing takes longer than `budget`: parse anew, or go without.
    #[must_use]
    pub fn edit(
        &mut self,
        start_byte: usize,
        old_end_byte: usize,
        new_end_byte: usize,
        new_text: &str,
        budget: Duration,
    ) -> bool {
        if self.text.get(start_byte..old_end_byte).is_none() || new_end_byte != start_byte + new_text.len() {
            return false;
        }
        let start_position = point_after(Point::new(0, 0), &self.text[..start_byte]);
        let edit = InputEdit {
            start_byte,
            old_end_byte,
            new_end_byte,
            start_position,
            old_end_position: point_after(start_position, &self.text[start_byte..old_end_byte]),
            new_end_position: point_after(start_position, new_text),
        };
        let text = [&self.text[..start_byte], new_text, &self.text[old_end_byte..]].concat();
        let mut edited = self.tree.clone();
        edited.edit(&edit);
        let Some(tree) = parse_text(self.language, &text, Some(&edited), budget) else { return false };
        (self.text, self.tree) = (text, tree);
        true
    }

    /// The language that the text was parsed as.
    pub fn language(&self) -> LanguageId {
        self.language
    }

    /// The text that was parsed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The root of the tree, for questions that are not asked here.
    pub fn root(&self) -> Node<'_> {
        self.tree.root_node()
    }

    /// Number of places where the text is not of the language: outermost error nodes and missing tokens.
    pub fn error_count(&self) -> usize {
        self.outermost_errors().count()
    }

    /// Bytes inside the outermost error nodes. A missing token counts nothing: it has no bytes.
    pub fn error_bytes(&self) -> usize {
        self.outermost_errors().map(|node| node.byte_range().len()).sum()
    }

    /// The outermost error nodes and missing tokens, in the order of the text.
    pub fn outermost_errors(&self) -> impl Iterator<Item = Node<'_>> {
        let wrong = |node: &Node| node.is_error() || node.is_missing();
        self.preorder(move |node| node.has_error() && !wrong(node)).filter(wrong)
    }

    /// Whether a caret at `offset` stands in a string, character, regular expression or here-document, and not in code
    /// interpolated into one. A string still without its closing quote counts from its opening quote to the line's end.
    pub fn in_string(&self, offset: usize) -> bool {
        self.role_at(offset) == Role::String
    }

    /// Whether a caret at `offset` stands in a comment; the end of a line comment is still in it.
    pub fn in_comment(&self, offset: usize) -> bool {
        self.role_at(offset) == Role::Comment
    }

    /// Byte ranges of the named nodes of at least `min_bytes`, parents before children. Nodes with errors inside are left
    /// out (their error-free parts are not), and so is the root.
    pub fn node_spans(&self, min_bytes: usize) -> impl Iterator<Item = Range<usize>> {
        self.preorder(move |node| node.byte_range().len() >= min_bytes)
            .skip(1)
            .filter(move |node| node.is_named() && !node.has_error() && node.byte_range().len() >= min_bytes)
            .map(|node| node.byte_range())
    }

    /// Byte range of the innermost block (function body, class body, braces, indented suite) that a caret at `offset`
    /// stands in; the whole text when there is none. On a blank line after a block that has no closing token, as in
    /// Python, the caret's column says whether it is still in the block; the range then reaches to the caret.
    pub fn enclosing_block(&self, offset: usize) -> Range<usize> {
        let offset = self.clamp(offset);
        let is_around = |node: &&Node| kind::is_block(node) && (offset < node.end_byte() || !kind::is_closed(node));
        let path = self.path_to(offset);
        let inside = path.iter().skip(1).rev().find(is_around);
        let open = self.open_block_before(offset);
        match (inside.map(|node| node.byte_range()), open) {
            (Some(inside), Some(open)) if open.start > inside.start => open,
            (Some(inside), _) => inside,
            (None, Some(open)) => open,
            (None, None) => 0..self.text.len(),
        }
    }

    /// Nodes from the root down to the innermost one with `start < offset <= end`: those that the caret is in or ends.
    pub(crate) fn path_to(&self, offset: usize) -> Vec<Node<'_>> {
        let mut path = vec![self.root()];
        if offset == 0 {
            return path;
        }
        let mut cursor = self.root().walk();
        // A child that ends after the byte before the caret; the test of its start excludes gaps between children.
        while cursor.goto_first_child_for_byte(offset - 1).is_some() {
            while cursor.node().byte_range().is_empty() && cursor.goto_next_sibling() {}
            if !(cursor.node().start_byte() < offset && offset <= cursor.node().end_byte()) {
                break;
            }
            path.push(cursor.node());
        }
        path
    }

    /// All nodes, parents before children; the children of a node are visited when `descend` says so.
    pub(crate) fn preorder<'tree>(
        &'tree self,
        descend: impl Fn(&Node<'tree>) -> bool,
    ) -> impl Iterator<Item = Node<'tree>> {
        let mut cursor = self.root().walk();
        let mut next = Some(self.root());
        std::iter::from_fn(move || {
            let node = next?;
            let mut moved = descend(&node) && cursor.goto_first_child();
            while !moved {
                moved = cursor.goto_next_sibling();
                if !moved && !cursor.goto_parent() {
                    break;
                }
            }
            next = moved.then(|| cursor.node());
            Some(node)
        })
    }

    /// The nearest character boundary at or before `offset`.
    pub(crate) fn clamp(&self, offset: usize) -> usize {
        (0..=offset.min(self.text.len())).rev().find(|&at| self.text.is_char_boundary(at)).unwrap_or(0)
    }

    fn role_at(&self, offset: usize) -> Role {
        let offset = self.clamp(offset);
        let path = self.path_to(offset);
        for node in path.iter().rev() {
            let role = kind::role(node);
            let text = &self.text[node.byte_range()];
            let inside = offset < node.end_byte()
                || match role {
                    Role::Comment => kind::is_line_comment(text, self.language.row()) && !text.ends_with('\n'),
                    Role::String => kind::is_unterminated(node),
                    Role::Code | Role::Other => true,
                };
            if role != Role::Other && inside {
                return role;
            }
        }
        let broken = path.last().is_some_and(|node| node.has_error() || node.is_error() || node.is_missing())
            || path.iter().any(|node| node.is_error());
        if !broken {
            return Role::Other;
        }
        let line_start = self.text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        match lexical::line_context(self.language, &self.text[line_start..offset]) {
            lexical::LineContext::String => Role::String,
            lexical::LineContext::Comment => Role::Comment,
            lexical::LineContext::Code => Role::Code,
        }
    }

    /// The block without a closing token that ends before the blank space before the caret and that the caret's column
    /// continues.
    fn open_block_before(&self, offset: usize) -> Option<Range<usize>> {
        let line_start = self.text[..offset].rfind('\n')? + 1;
        let caret_column = offset - line_start;
        let code_end = self.text[..offset].trim_end().len();
        if code_end >= line_start || caret_column == 0 {
            return None;
        }
        let is_open = |node: &&Node| {
            let column = node.start_position().column;
            let continues = 0 < column && column <= caret_column && node.end_byte() <= offset;
            continues && kind::is_block(node) && !kind::is_closed(node)
        };
        self.path_to(code_end).iter().rev().find(is_open).map(|node| node.start_byte()..offset)
    }
}

fn parse_text(language: LanguageId, text: &str, old_tree: Option<&Tree>, budget: Duration) -> Option<Tree> {
    let grammar = language.row().grammar?;
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let mut parser = Parser::new();
    parser.set_language(&grammar()).ok()?;
    let started = Instant::now();
    let mut give_up = |_: &_| match started.elapsed() < budget {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    };
    let options = ParseOptions::new().progress_callback(&mut give_up);
    let bytes = text.as_bytes();
    parser.parse_with_options(&mut |byte, _| bytes.get(byte..).unwrap_or_default(), old_tree, Some(options))
}

/// The position reached from `start` after `text`; columns are bytes.
fn point_after(start: Point, text: &str) -> Point {
    match text.rfind('\n') {
        Some(last) => Point::new(start.row + text.bytes().filter(|&b| b == b'\n').count(), text.len() - last - 1),
        None => Point::new(start.row, start.column + text.len()),
    }
}
