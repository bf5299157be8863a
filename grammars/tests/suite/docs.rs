//! `docs/languages.md` is what the table says.

use std::path::Path;

use multicoder_grammars::docs::languages_page;

#[test]
fn the_languages_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/languages.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, languages_page()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == languages_page(),
        "docs/languages.md is old; renew it by running the tests with UPDATE_DOCS=1"
    );
}
