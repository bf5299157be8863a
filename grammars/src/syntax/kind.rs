//! What a node is, judged by the name of its kind.
//!
//! Grammars of different authors call the same things alike: everything written in quotes has "string", "char", "regex" or
//! "heredoc" in the name of its kind, code inside it "interpolation" or "substitution". The test `tests/questions.rs` holds
//! this true for every grammar of the table.

use tree_sitter::Node;

use crate::language::Language;

/// What a caret inside a node stands in, as far as the node alone says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A comment or embedded documentation.
    Comment,
    /// Anything quoted.
    String,
    /// Code interpolated into something quoted: ends the search for a string around it.
    Code,
    /// Nothing that decides; ask the parent.
    Other,
}

/// The role of `node`. Only named nodes have one: the keyword `string` is no string.
pub fn role(node: &Node) -> Role {
    let kind = node.kind();
    let has = |words: &[&str]| words.iter().any(|word| kind.contains(word));
    if !node.is_named() || has(&["concatenated", "chained_string", "heredoc_redirect", "heredoc_beginning"]) {
        Role::Other
    } else if has(&["comment", "haddock"]) || kind == "pod" {
        Role::Comment
    } else if has(&["interpolation", "interpolated_expression", "substitution", "embedded_expression"]) {
        Role::Code
    } else if has(&["string", "char_literal", "character", "charlist", "heredoc", "nowdoc", "regex", "rune_literal"])
        || matches!(kind, "char" | "sigil" | "quoted_content" | "quoted_atom" | "command_literal" | "subshell_literal")
    {
        Role::String
    } else {
        Role::Other
    }
}

/// Whether a node is the body of something: a list of statements or members, without the name and the parameters.
pub fn is_body(node: &Node) -> bool {
    let kind = node.kind();
    let words = ["block", "body", "compound_statement", "suite", "statements", "declaration_list", "do_group"];
    let whole =
        ["braced_expression", "instance_declarations", "class_declarations", "local_binds", "alternatives", "do"];
    node.is_named()
        && (words.iter().any(|word| kind.contains(word)) || whole.contains(&kind))
        && role(node) == Role::Other
}

/// Whether a node is a body, or stands for one in the grammars that give bodies no node (Julia, OCaml, Haskell).
pub fn is_block(node: &Node) -> bool {
    let constructs = ["module_definition", "for_statement", "while_statement", "if_statement", "try_statement"];
    let stands_for_body = constructs.contains(&node.kind()) || is_definition(node) || node.kind() == "match_case";
    is_body(node) || (node.is_named() && stands_for_body && !has_body(node))
}

/// Whether a node defines a name whose body has no node of its own: the names inside, but the first, are local to it.
pub fn is_definition_without_body(node: &Node) -> bool {
    is_definition(node) && !has_body(node)
}

fn is_definition(node: &Node) -> bool {
    let kinds = ["function_definition", "macro_definition", "struct_definition", "let_binding", "function", "bind"];
    node.is_named() && kinds.contains(&node.kind())
}

fn has_body(node: &Node) -> bool {
    node.children(&mut node.walk()).any(|child| is_body(&child))
}

/// Whether a block ends with a token that closes it, such as `}` or `end`; then a caret after it is outside.
pub fn is_closed(block: &Node) -> bool {
    let mut node = *block;
    while let Some(last) = node.child_count().checked_sub(1).and_then(|last| node.child(last)) {
        if !last.is_named() {
            return !last.is_missing() && matches!(last.kind(), "}" | "end" | "done" | ")" | "]" | "fi" | "esac");
        }
        if !is_body(&last) {
            return false;
        }
        node = last;
    }
    false
}

/// Whether a comment's text runs to the end of its line, so that a caret after its last character is still in it.
pub fn is_line_comment(text: &str, language: &Language) -> bool {
    let opens_block = language.block_comment.is_some_and(|(open, _)| text.starts_with(open));
    let opens_line = language.line_comment.is_some_and(|open| text.starts_with(open)) || text.starts_with('#');
    !opens_block && opens_line
}

/// Whether the closing quote of a string is missing: the parser made one up, or there is only the opening one.
pub fn is_unterminated(node: &Node) -> bool {
    let last_child = node.child_count().checked_sub(1).and_then(|last| node.child(last));
    last_child.is_some_and(|last| last.is_missing())
}

/// Whether a node without children is a name that a program gives to something.
pub fn is_identifier(node: &Node) -> bool {
    let kind = node.kind();
    let words = ["identifier", "name", "variable", "constant", "constructor", "alias"];
    node.is_named()
        && node.child_count() == 0
        && (words.iter().any(|word| kind.contains(word)) || matches!(kind, "var" | "atom" | "value_pattern"))
}

/// Whether a node declares the parameters of a function, whose names only its own body sees.
pub fn is_parameters(node: &Node) -> bool {
    node.is_named() && node.kind().contains("param")
}
