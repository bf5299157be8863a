//! Relatives: the languages whose experts serve a language that a model was not trained on, nearest first.

use crate::language::LanguageId;

/// Sorted by name; a language that stands here in no row has no relative. A row is here where `multicoder eval unseen` found that the
/// relative's expert needs fewer bits than no expert, or where nobody has measured it: CoffeeScript and Dart are better served as none.
#[rustfmt::skip]
const RELATIVES: &[(&str, &[&str])] = &[
    ("cuda",         &["cpp", "c"]),
    ("d",            &["cpp", "c"]),
    ("emacslisp",    &["commonlisp"]),
    ("fish",         &["bash"]),
    ("fsharp",       &["ocaml"]),
    ("glsl",         &["c"]),
    ("groovy",       &["java", "kotlin"]),
    ("javascript",   &["typescript"]),
    ("objectivec",   &["c"]),
    ("scheme",       &["racket", "commonlisp"]),
    ("svelte",       &["javascript", "typescript"]),
    ("tsx",          &["typescript", "javascript"]),
    ("typescript",   &["javascript"]),
    ("vue",          &["javascript", "typescript"]),
];

impl LanguageId {
    /// The name under which a model that was trained on `languages` serves this language: its own, or its nearest relative's.
    pub fn served_as<S: AsRef<str>>(self, languages: &[S]) -> Option<&'static str> {
        let is_served = |name: &&'static str| languages.iter().any(|language| language.as_ref() == *name);
        let own = self.name();
        let row = RELATIVES.binary_search_by(|(name, _)| (*name).cmp(own)).ok();
        let relatives = row.map_or::<&[&str], _>(&[], |idx| RELATIVES[idx].1);
        std::iter::once(own).chain(relatives.iter().copied()).find(is_served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_the_table_of_languages_and_the_rows_are_sorted() {
        assert!(RELATIVES.is_sorted_by(|a, b| a.0 < b.0));
        for (name, relatives) in RELATIVES {
            for name in std::iter::once(name).chain(*relatives) {
                assert!(LanguageId::by_name(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn a_language_is_served_as_itself_or_as_its_nearest_relative() {
        let served = |name, languages: &[&str]| LanguageId::by_name(name).and_then(|id| id.served_as(languages));
        assert_eq!(served("tsx", &["javascript", "tsx", "typescript"]), Some("tsx"));
        assert_eq!(served("tsx", &["javascript", "typescript"]), Some("typescript"));
        assert_eq!(served("tsx", &["javascript"]), Some("javascript"));
        assert_eq!(served("tsx", &["python"]), None);
        assert_eq!(served("python", &["lua"]), None);
    }
}
