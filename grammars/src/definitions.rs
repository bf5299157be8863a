//! Names that a file gives to things which other files can use.

use std::ops::Range;

use tree_sitter::Node;

use crate::syntax::SyntaxTree;
use crate::syntax::kind;

/// Parts of the kinds of nodes that define a type, a function, a module, a constant.
const DEFINING: &[&str] = &[
    "definition",
    "declaration",
    "_item",
    "class",
    "function",
    "method",
    "struct",
    "enum",
    "interface",
    "trait",
    "module",
    "contract",
    "protocol",
];
/// Parts of the kinds of nodes that use one of these words and define nothing that another file sees.
const NOT_DEFINING: &[&str] =
    &["parameter", "argument", "import", "use_", "call", "invocation", "body", "list", "package", "expression"];
/// How far below its node a name may stand: in C it is in a declarator of a declarator.
const MAX_DECLARATORS: usize = 4;

impl SyntaxTree {
    /// The definitions of the text, in its order: the byte range of each name, and that of all of its definition. Found in the grammars
    /// that give names a field of their own, or a declarator; those inside functions are left out.
    pub fn definitions(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let is_function = |node: &Node| {
            let kind = node.kind();
            node.is_named() && ["function", "method"].iter().any(|word| kind.contains(word)) && is_defining(node)
        };
        let mut definitions = Vec::new();
        let mut inside_until = 0;
        for node in self.preorder(move |node| !kind::is_parameters(node)) {
            if node.start_byte() < inside_until || !is_defining(&node) {
                continue;
            }
            // The declarators in a declaration name the same thing again.
            let name = name_of(&node).map(|name| name.byte_range());
            let known = definitions.last().map(|(last, _): &(Range<usize>, Range<usize>)| last.clone());
            if let Some(name) = name.filter(|name| known.as_ref() != Some(name)) {
                definitions.push((name, node.byte_range()));
            }
            if is_function(&node) {
                inside_until = node.end_byte();
            }
        }
        definitions
    }
}

fn is_defining(node: &Node) -> bool {
    let kind = node.kind();
    let has = |words: &[&str]| words.iter().any(|word| kind.contains(word));
    // C: `struct point *p` names a type that `struct point { ... }` defines.
    let is_mention = kind.ends_with("_specifier") && node.child_by_field_name("body").is_none();
    node.is_named() && has(DEFINING) && !has(NOT_DEFINING) && !is_mention
}

/// The leaf that a definition's name is.
fn name_of<'a>(node: &Node<'a>) -> Option<Node<'a>> {
    if let Some(name) = node.child_by_field_name("name") {
        return Some(name).filter(kind::is_identifier);
    }
    let mut at = *node;
    for _ in 0..MAX_DECLARATORS {
        at = at.child_by_field_name("declarator")?;
        if kind::is_identifier(&at) {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::LanguageId;

    fn names(language: &str, text: &str) -> Vec<String> {
        let tree = SyntaxTree::parse(LanguageId::by_name(language).unwrap(), text).unwrap();
        let definitions = tree.definitions();
        assert!(definitions.iter().all(|(name, whole)| whole.start <= name.start && name.end <= whole.end));
        definitions.into_iter().map(|(name, _)| text[name].to_owned()).collect()
    }

    #[test]
    fn what_other_files_can_use_is_found_and_what_is_inside_functions_is_not() {
        for (language, text, expected) in [
            (
                "python",
                "class A:\n    def f(self, x):\n        def inner(): pass\n        return g(x)\n",
                vec!["A", "f"],
            ),
            (
                "rust",
                "pub struct S { a: u8 }\nimpl S { fn new(a: u8) -> S { let b = 1; S { a } } }\nmod m;\n",
                vec!["S", "a", "new", "m"],
            ),
            ("c", "static int *f(int x) { int y; return 0; }\n", vec!["f"]),
            ("c", "struct point { int x; };\nstruct other *g(void);\n", vec!["point", "x", "g"]),
            ("rust", "static A: S = S { a: 1 };\n", vec!["A"]),
            ("go", "package p\nimport \"fmt\"\nfunc (t *T) Run(n int) {}\nfunc Go() {}\n", vec!["Run", "Go"]),
            ("java", "class A { int f(int x) { return x; } interface B { void g(); } }\n", vec!["A", "f", "B", "g"]),
            ("javascript", "function f(x) { const y = 1; }\nclass A { m() {} }\n", vec!["f", "A", "m"]),
            ("lua", "function f(x) return x end\n", vec!["f"]),
        ] {
            assert_eq!(names(language, text), expected, "{language}");
        }
    }
}
