//! Names that a caret can see: those written around and before it, nearest first.

use std::collections::HashSet;

use tree_sitter::Node;

use crate::syntax::{SyntaxTree, kind};

/// Nodes looked at before giving up; a file of some ten thousand lines has more, and its far names matter little.
const MAX_NODES: usize = 50_000;

/// Children looked at where a function's parameters are sought; they stand near its beginning.
const MAX_CHILDREN: usize = 100;

impl SyntaxTree {
    /// Names visible from a caret at `offset`, without repetition: first those before it in its own blocks, from the
    /// nearest backwards, then those declared further down outside of its blocks. The insides and the parameters of
    /// functions, classes and blocks that the caret is not in are not looked into.
    pub fn identifiers_in_scope(&self, offset: usize) -> Vec<String> {
        let offset = self.clamp(offset);
        let (mut before, after): (Vec<_>, Vec<_>) =
            self.visible_names(offset).into_iter().partition(|node| node.end_byte() < offset);
        before.reverse();
        let mut seen = HashSet::new();
        let texts = before.iter().chain(&after).map(|node| &self.text()[node.byte_range()]);
        texts.filter(|text| is_name(text) && seen.insert(*text)).map(str::to_owned).collect()
    }

    /// The nodes of the names, in the order of the text, without the one that is being written at the caret.
    fn visible_names(&self, offset: usize) -> Vec<Node<'_>> {
        let own_parameters = self.parameters_around(offset);
        let sees_inside = |node: &Node| {
            is_around(node, offset)
                || !(kind::is_body(node) || kind::is_parameters(node) && !own_parameters.contains(&node.id()))
        };
        let mut names = Vec::new();
        let (mut definition_end, mut hidden_until) = (0, 0);
        for node in self.preorder(sees_inside).take(MAX_NODES).filter(|node| !touches(node, offset) || !is_leaf(node)) {
            if kind::is_definition_without_body(&node) && !is_around(&node, offset) {
                definition_end = definition_end.max(node.end_byte());
            }
            if node.start_byte() >= hidden_until && kind::is_identifier(&node) {
                names.push(node);
                hidden_until = if node.end_byte() < definition_end { definition_end } else { hidden_until };
            }
        }
        names
    }

    /// Ids of the parameter lists of the functions that the caret is in. Some grammars put the list a few nodes below
    /// the function: C's stands in the declarator.
    fn parameters_around(&self, offset: usize) -> HashSet<usize> {
        let path = self.path_to(offset);
        let on_path: HashSet<usize> = path.iter().map(Node::id).collect();
        let mut found = HashSet::new();
        for node in path.iter().skip(1).filter(|node| !kind::is_body(node)) {
            let mut level = vec![*node];
            for _depth in 0..3 {
                let children = level.iter().flat_map(|parent| first_children(parent));
                level = children
                    .take(MAX_CHILDREN)
                    .filter(|child| !kind::is_body(child) && !on_path.contains(&child.id()))
                    .collect();
                found.extend(level.iter().filter(|child| kind::is_parameters(child)).map(Node::id));
            }
        }
        found
    }
}

/// The first children of a node; a table of data may have a hundred thousand.
fn first_children<'tree>(parent: &Node<'tree>) -> Vec<Node<'tree>> {
    parent.children(&mut parent.walk()).take(MAX_CHILDREN).collect()
}

fn is_around(node: &Node, offset: usize) -> bool {
    node.start_byte() < offset && offset <= node.end_byte()
}

fn is_leaf(node: &Node) -> bool {
    node.child_count() == 0
}

/// Whether the caret is in or at the edge of the name, which is then still being written.
fn touches(node: &Node, offset: usize) -> bool {
    node.start_byte() <= offset && offset <= node.end_byte()
}

fn is_name(text: &str) -> bool {
    text.chars().any(char::is_alphabetic) && text.chars().all(|c| c.is_alphanumeric() || "_$@%?!'".contains(c))
}
