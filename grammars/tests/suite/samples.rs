//! One real file a language with a grammar: found by its name, parsed without an error, its comments seen.

use std::path::{Path, PathBuf};

use multicoder_grammars::{LanguageId, SyntaxTree, detect, regions};

/// The sample of a language: the one file in `samples/` whose stem is the language's name.
pub(crate) fn sample_of(id: LanguageId) -> (PathBuf, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let paths = id.row().extensions.iter().map(|extension| folder.join(format!("{}.{extension}", id.name())));
    let path = paths.into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("samples/ has no file for {id}"));
    let text = std::fs::read_to_string(&path).unwrap();
    (path, text)
}

pub(crate) fn languages_with_grammar() -> impl Iterator<Item = LanguageId> {
    LanguageId::all().filter(|id| id.has_grammar())
}

#[test]
fn samples_parse_without_errors() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        let tree = SyntaxTree::parse(id, &text).unwrap();
        let errors: Vec<_> = tree.outermost_errors().map(|node| (node.start_position(), node.to_sexp())).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        assert_eq!((tree.error_count(), tree.error_bytes()), (0, 0));
        assert!((40..=160).contains(&text.lines().count()), "{}: a sample has 40 to 160 lines", path.display());
    }
}

#[test]
fn samples_are_detected() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        assert_eq!(detect(None, &path, &text), Some(id), "{}", path.display());
        assert_eq!(detect(None, &path, ""), Some(id), "{} without its content", path.display());
    }
}

#[test]
fn comment_lines_of_samples_are_comments_and_the_rest_is_not_all_comment() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        let tree = SyntaxTree::parse(id, &text).unwrap();
        let row = id.row();
        let markers: Vec<_> = row.line_comment.into_iter().chain(row.block_comment.map(|(open, _)| open)).collect();
        let mut line_start = 0;
        let mut n_comments = 0;
        for line in text.split_inclusive('\n') {
            let marker_start = line_start + line.len() - line.trim_start().len();
            let is_comment = markers.iter().any(|marker| line.trim_start().starts_with(marker));
            if is_comment && !line.starts_with("#!") && !line.starts_with("{-#") {
                // Not at the very end: there a block comment may be closed.
                let caret = (line_start + line.trim_end().len()).saturating_sub(3).max(marker_start + 2);
                assert!(tree.in_comment(caret), "{}: {line:?} is a comment", path.display());
                assert!(!tree.in_string(caret), "{}: {line:?} is no string", path.display());
                assert!(!tree.in_comment(marker_start), "{}: before {line:?} is no comment", path.display());
                n_comments += 1;
            }
            line_start += line.len();
        }
        assert!(n_comments > 0, "{} has no comment line", path.display());
    }
}

#[test]
fn samples_offer_spans_to_cut_and_blocks_to_stand_in() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        let tree = SyntaxTree::parse(id, &text).unwrap();
        let spans: Vec<_> = tree.node_spans(20).collect();
        assert!(spans.len() > 30, "{}: {} spans", path.display(), spans.len());
        assert!(spans.iter().all(|span| span.len() >= 20 && text.get(span.clone()).is_some()));
        let in_blocks = (0..text.len()).filter(|&offset| tree.enclosing_block(offset).len() < text.len()).count();
        assert!(
            in_blocks * 10 > text.len() * 3,
            "{}: {in_blocks} of {} bytes are in a block",
            path.display(),
            text.len()
        );
    }
}

#[test]
fn embedded_regions_of_samples_are_sorted_disjoint_and_whole_characters() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        // Each sample as itself, and taken for every other language.
        for language in LanguageId::all() {
            let mut end = 0;
            for region in regions::embedded(language, &text) {
                let what = format!("{} as {language}: {region:?}", path.display());
                assert!(end <= region.span.start && region.span.start < region.span.end, "{what}");
                assert!(text.get(region.span.clone()).is_some() && region.language != language, "{what}");
                end = region.span.end;
            }
        }
    }
}
