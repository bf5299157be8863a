//! A piece of a sequence: a stretch of a document in one of the layouts of `multicoder_model::fim`, with what the trainer must know of
//! each of its tokens.

use std::ops::Range;

use anyhow::{Result, anyhow};
use multicoder_grammars::LanguageId;
use multicoder_grammars::regions::{Region, embedded};
use multicoder_model::{Tokenizer, fim};

use super::cut;
use super::retrieve::{self, Match};
use super::texts::{LanguageTexts, Texts};
use crate::config::DataConfig;
use crate::rng::Rng;

/// Language of a token: that of its row.
pub const ROW_LANGUAGE: u32 = u32::MAX;
/// Language of a token: none, whatever its row is of.
pub const NO_LANGUAGE: u32 = u32::MAX - 1;
/// Tokens before a caret that other documents are searched for.
const QUERY_TOKENS: usize = 128;
/// The most snippets of a piece.
const MAX_SNIPPETS: usize = 3;
/// The most tokens of a snippet.
const MAX_SNIPPET_TOKENS: usize = 256;
/// What of the room for snippets is left to the first one's path and the separators.
const PATH_TOKENS: usize = 16;
/// Ranked matches that the snippets are taken of: the best ones may not fit.
const N_MATCHES: usize = 8;

/// What a piece is made of.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Number of the document.
    pub(super) document: usize,
    /// Its tokens that are the piece's text.
    pub(super) tokens: Range<usize>,
    /// Whether these are its last.
    pub(super) ends_document: bool,
    /// Whether the piece begins with its language's token.
    pub(super) with_tag: bool,
    /// Whether the text is cut for fill in the middle.
    pub(super) is_fim: bool,
    /// The most tokens of snippets, with their paths; 0 for none.
    pub(super) snippet_tokens: usize,
    /// The most tokens of the piece.
    pub(super) room: usize,
}

/// Tokens one by one, all lists of the same length.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub(super) ids: Vec<u32>,
    /// Whether a token counts as a target.
    pub(super) is_counted: Vec<bool>,
    /// Index into [`Texts::languages`], [`ROW_LANGUAGE`] or [`NO_LANGUAGE`].
    pub(super) language: Vec<u32>,
}

impl Piece {
    fn push(&mut self, ids: &[u32], is_counted: bool) {
        self.ids.extend(ids);
        self.is_counted.resize(self.ids.len(), is_counted);
        self.language.resize(self.ids.len(), ROW_LANGUAGE);
    }

    fn push_text(&mut self, text: &Spelled, is_counted: bool, regions: &[(Range<usize>, u32)]) {
        self.push(&text.ids, is_counted);
        let at = self.ids.len() - text.ids.len();
        self.language[at..].copy_from_slice(&token_languages(&text.starts, regions));
    }

    /// Adds another piece.
    pub(super) fn append(&mut self, piece: Piece) {
        self.ids.extend(piece.ids);
        self.is_counted.extend(piece.is_counted);
        self.language.extend(piece.language);
    }

    /// Fills up to `n_tokens` with `id`, which does not count.
    pub(super) fn pad(&mut self, n_tokens: usize, id: u32) {
        self.push(&vec![id; n_tokens.saturating_sub(self.ids.len())], false);
    }

    /// Makes all tokens those of no language.
    pub(super) fn drop_language(&mut self) {
        self.language.fill(NO_LANGUAGE);
    }

    /// Drops what is beyond `room` tokens.
    pub(super) fn truncate(&mut self, room: usize) {
        self.ids.truncate(room);
        self.is_counted.truncate(room);
        self.language.truncate(room);
    }
}

/// Text as tokens, and the byte of the piece's text at which each begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Spelled {
    ids: Vec<u32>,
    starts: Vec<usize>,
}

/// What pieces of one language are made with.
pub(super) struct Maker<'a> {
    pub(super) texts: &'a Texts,
    pub(super) language_idx: usize,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) config: &'a DataConfig,
    /// Whether regions of another language inside a text are that language's.
    pub(super) with_regions: bool,
}

impl Maker<'_> {
    pub(super) fn piece(&self, ask: &Ask, rng: &mut Rng) -> Result<Piece> {
        let own = self.own();
        let ids = own.tokens.ids(ask.tokens.clone());
        self.check(&ids)?;
        let snippets = self.snippets(ask, &ids, rng)?;
        let mut piece = Piece::default();
        let tag = ask.with_tag.then(|| self.tokenizer.language_token(&own.name)).flatten();
        piece.push(tag.as_slice(), false);
        let separator = self.tokenizer.special().file_sep;
        piece.push(&separator.map_or_else(Vec::new, |separator| fim::separated(separator, snippets)), false);
        let (text, spelled) = self.spell(ids);
        // Tokens of another family may be no text; then there is nothing to cut or to parse.
        let text = String::from_utf8(text).unwrap_or_default();
        let regions = self.regions(&text);
        let halves = if ask.is_fim { self.halves(&text, &spelled, rng)? } else { None };
        let fim = self.tokenizer.special().fim;
        let fits = |(suffix, prefix): &(Spelled, Spelled)| {
            piece.ids.len() + suffix.ids.len() + prefix.ids.len() + 4 <= ask.room
        };
        let end_of_text = [self.tokenizer.special().end_of_text];
        match fim.zip(halves.filter(fits)) {
            Some((fim, (suffix, prefix))) => {
                piece.push(&[fim.prefix, fim.suffix], false);
                piece.push_text(&suffix, self.config.count_suffix, &regions);
                piece.push(&[fim.middle], false);
                piece.push_text(&prefix, true, &regions);
                piece.push(&end_of_text, true);
            }
            None => {
                piece.push_text(&spelled, true, &regions);
                // Where the document goes on, the end-of-text token would be a lie.
                piece.push(if ask.ends_document { &end_of_text } else { &[] }, true);
            }
        }
        Ok(piece)
    }

    fn own(&self) -> &LanguageTexts {
        &self.texts.languages[self.language_idx]
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let n = self.texts.vocabulary.len();
        let unknown = ids.iter().find(|&&id| id as usize >= n);
        let damage = |id| {
            format!("tokens of {}: id {id}, expected below {n}; delete the file, to have it made anew", self.own().name)
        };
        unknown.map_or(Ok(()), |id| Err(anyhow!(damage(id))))
    }

    /// The bytes of tokens, and where each begins.
    fn spell(&self, ids: Vec<u32>) -> (Vec<u8>, Spelled) {
        let mut text = Vec::with_capacity(ids.len() * 4);
        let mut starts = Vec::with_capacity(ids.len());
        for &id in &ids {
            starts.push(text.len());
            text.extend_from_slice(self.tokenizer.bytes_of(id));
        }
        (text, Spelled { ids, starts })
    }

    /// Suffix, then prefix with middle, where the text is cut; `None` where it is not.
    fn halves(&self, text: &str, spelled: &Spelled, rng: &mut Rng) -> Result<Option<(Spelled, Spelled)>> {
        let cut = cut::suffix_start(text, &spelled.starts, self.own().grammar, self.config.fim_suffix_max_frac, rng);
        cut.map_or(Ok(None), |cut| self.split(text, spelled, cut))
    }

    /// Both sides of a cut as a tokenizer gives them, each for itself. Lines are encoded each for itself, so that only the line of the cut
    /// is encoded anew. `None` where that line begins inside a character, as it may with another family's tokens.
    fn split(&self, text: &str, spelled: &Spelled, cut: usize) -> Result<Option<(Spelled, Spelled)>> {
        let Spelled { ids, starts } = spelled;
        let ends_line = |idx: &usize| self.texts.vocabulary.holds_line_end(ids[*idx]);
        // The token that the cut is in, or that begins there.
        let at = starts.partition_point(|&start| start <= cut).saturating_sub(1);
        let line_start = (0..at).rev().find(ends_line).map_or(0, |before| before + 1);
        let line_end = (at..ids.len()).find(ends_line).map_or(ids.len(), |last| last + 1);
        let start_of = |idx: usize| starts.get(idx).copied().unwrap_or(text.len());
        let sides = text.get(start_of(line_start)..cut).zip(text.get(cut..start_of(line_end)));
        let Some((before, after)) = sides else { return Ok(None) };
        let (mut prefix, mut suffix) = (Spelled::default(), Spelled::default());
        prefix.extend(&ids[..line_start], &starts[..line_start]);
        self.encode_onto(&mut prefix, before, start_of(line_start))?;
        self.encode_onto(&mut suffix, after, cut)?;
        suffix.extend(&ids[line_end..], &starts[line_end..]);
        Ok(Some((suffix, prefix)))
    }

    fn encode_onto(&self, to: &mut Spelled, text: &str, mut start: usize) -> Result<()> {
        for id in self.tokenizer.encode(text)? {
            to.extend(&[id], &[start]);
            start += self.tokenizer.bytes_of(id).len();
        }
        Ok(())
    }

    /// What a server would find for a caret somewhere in the piece, best last.
    fn snippets(&self, ask: &Ask, ids: &[u32], rng: &mut Rng) -> Result<Vec<Vec<u32>>> {
        if ask.snippet_tokens == 0 || self.tokenizer.special().file_sep.is_none() {
            return Ok(Vec::new());
        }
        let caret = 1 + rng.below(ids.len());
        let query = &ids[caret.saturating_sub(QUERY_TOKENS)..caret.min(ids.len())];
        let Texts { vocabulary, .. } = self.texts;
        let max_tokens = ask.snippet_tokens.saturating_sub(PATH_TOKENS).min(MAX_SNIPPET_TOKENS);
        let found = retrieve::matches(&self.own().tokens, vocabulary, ask.document, query, max_tokens, N_MATCHES);
        let mut snippets = Vec::new();
        // A separator stands before each and after the last.
        let mut left = ask.snippet_tokens.saturating_sub(1);
        for found in found {
            let snippet = self.snippet(&found)?;
            if snippets.len() < MAX_SNIPPETS && snippet.len() < left {
                left -= snippet.len() + 1;
                snippets.push(snippet);
            }
        }
        snippets.reverse();
        Ok(snippets)
    }

    /// Path, line end, text, line end.
    fn snippet(&self, found: &Match) -> Result<Vec<u32>> {
        let tokens = &self.own().tokens;
        let text = tokens.ids(found.tokens.clone());
        self.check(&text)?;
        let mut ids = self.tokenizer.encode(&format!("{}\n", tokens.path(found.document)))?;
        let ends_line = text.last().is_some_and(|&id| self.texts.vocabulary.holds_line_end(id));
        ids.extend(text);
        // The last line of a document may lack its end.
        ids.extend(if ends_line { Vec::new() } else { self.tokenizer.encode("\n")? });
        Ok(ids)
    }

    /// Spans of `text` in other languages that the texts have, with these.
    fn regions(&self, text: &str) -> Vec<(Range<usize>, u32)> {
        let Some(grammar) = self.own().grammar.filter(|_| self.with_regions) else { return Vec::new() };
        let index =
            |language: LanguageId| self.texts.languages.iter().position(|texts| texts.grammar == Some(language));
        let known = |region: Region| Some((region.span, index(region.language)? as u32));
        embedded(grammar, text).into_iter().filter_map(known).collect()
    }
}

impl Spelled {
    fn extend(&mut self, ids: &[u32], starts: &[usize]) {
        self.ids.extend(ids);
        self.starts.extend(starts);
    }
}

/// The language of each token: that of the region in which its first byte lies.
fn token_languages(starts: &[usize], regions: &[(Range<usize>, u32)]) -> Vec<u32> {
    let language = |start: &usize| {
        let before = regions.partition_point(|(span, _)| span.start <= *start);
        let region = before.checked_sub(1).map(|idx| &regions[idx]);
        region.filter(|(span, _)| *start < span.end).map_or(ROW_LANGUAGE, |(_, language)| *language)
    };
    starts.iter().map(language).collect()
}

#[cfg(test)]
mod tests {
    use multicoder_model::fim;
    use multicoder_model::tokenizer::TokenizerOptions;

    use super::super::tokenize::tests::{Store, store, store_of};
    use super::*;
    use crate::config;

    struct Workshop {
        texts: Texts,
        tokenizer: Tokenizer,
        config: DataConfig,
        _dir: tempfile::TempDir,
    }

    impl Workshop {
        fn of(Store { dir, tokenizer, vocabulary, tokens }: Store) -> Workshop {
            let table = config::parse(config::preset("smoke").unwrap(), "smoke").unwrap();
            let config = config::resolve(&table, "smoke").unwrap().data;
            let (name, grammar) = ("lua".to_owned(), LanguageId::by_name("lua"));
            let languages = vec![LanguageTexts { name, grammar, tokens, windows: Vec::new() }];
            Workshop { texts: Texts { languages, vocabulary, fingerprint: 0 }, tokenizer, config, _dir: dir }
        }

        fn maker(&self) -> Maker<'_> {
            let Workshop { texts, tokenizer, config, .. } = self;
            Maker { texts, language_idx: 0, tokenizer, config, with_regions: true }
        }

        fn ask(&self, document: usize) -> Ask {
            let tokens = self.texts.languages[0].tokens.document(document);
            let (with_tag, is_fim, ends_document) = (true, false, true);
            Ask { document, tokens, ends_document, with_tag, is_fim, snippet_tokens: 0, room: 4000 }
        }

        fn piece(&self, ask: &Ask, seed: u64) -> Piece {
            self.maker().piece(ask, &mut Rng::keyed(seed, "piece", &[])).unwrap()
        }

        fn text(&self, ids: &[u32]) -> String {
            String::from_utf8(ids.iter().flat_map(|&id| self.tokenizer.bytes_of(id)).copied().collect()).unwrap()
        }
    }

    const TEXT: &str = "local function größe(a, b)\n    if a then\n\t\treturn a + b * 10\r\n    end\nend\n\nlocal größe_2 = größe(3, 4)\nreturn größe_2";

    #[test]
    fn pieces_are_what_the_shared_layout_makes_of_the_text() {
        let workshop = Workshop::of(store(&[TEXT, &"local x = größe(1, 2)\n".repeat(20)]));
        let special = workshop.tokenizer.special();
        let fim = special.fim.unwrap();
        let (mut n_cut, mut n_inside) = (0, 0);
        for seed in 0..500 {
            let ask = Ask { is_fim: true, ..workshop.ask(0) };
            let piece = workshop.piece(&ask, seed);
            let middle = piece.ids.iter().position(|&id| id == fim.middle);
            let cut = middle.map(|middle| workshop.text(&piece.ids[middle..]).len());
            let expected = fim::sequence(&workshop.tokenizer, Some("lua"), &[], TEXT, cut.map(|cut| 0..cut)).unwrap();
            assert_eq!(piece.ids, expected, "{cut:?}");
            assert_eq!([piece.is_counted.len(), piece.language.len()], [piece.ids.len(); 2]);
            let uncounted = piece.ids.iter().zip(&piece.is_counted).filter(|(_, is_counted)| !**is_counted);
            assert_eq!(uncounted.count(), if cut.is_some() { 4 } else { 1 });
            n_cut += usize::from(cut.is_some());
            let own = workshop.maker().spell(workshop.texts.languages[0].tokens.ids(ask.tokens)).1;
            n_inside += usize::from(cut.is_some_and(|cut| own.starts.binary_search(&cut).is_err()));
        }
        // One in ten cuts is at the end of the text; one in ten is in a token on purpose, and some others are.
        assert!((430..470).contains(&n_cut) && n_inside > 30, "{n_cut} {n_inside}");
    }

    #[test]
    fn text_that_goes_on_has_no_end_and_a_piece_without_room_is_plain() {
        let workshop = Workshop::of(store(&[TEXT]));
        let end_of_text = workshop.tokenizer.special().end_of_text;
        let open_ended = workshop.piece(&Ask { ends_document: false, with_tag: false, ..workshop.ask(0) }, 1);
        assert_eq!(workshop.text(&open_ended.ids), TEXT);
        assert!(!open_ended.ids.contains(&end_of_text));
        let narrow = Ask { is_fim: true, room: open_ended.ids.len() + 2, ..workshop.ask(0) };
        assert!((0..20).all(|seed| workshop.piece(&narrow, seed).ids.len() == open_ended.ids.len() + 2));
    }

    #[test]
    fn snippets_come_first_with_their_paths_best_last_and_do_not_count() {
        let lines =
            |name: &str, n: usize| (0..n).map(|k| format!("local {name}_{k} = {name}({k})\n")).collect::<String>();
        let texts = [lines("alpha", 12), lines("beta", 40), lines("alpha", 19) + &lines("beta", 1)];
        let document = |n: usize| ("one".to_owned(), format!("src/{n}.lua"), texts[n].as_str());
        let workshop = Workshop::of(store_of(&[0, 1, 2].map(document)));
        let separator = workshop.tokenizer.special().file_sep.unwrap();
        for seed in 0..50 {
            let ask = Ask { snippet_tokens: 700, ..workshop.ask(0) };
            let piece = workshop.piece(&ask, seed);
            let separators: Vec<usize> = (0..piece.ids.len()).filter(|&idx| piece.ids[idx] == separator).collect();
            let Some((&last, _)) = separators.split_last() else { continue };
            assert!(separators.len() <= MAX_SNIPPETS + 1 && last < 1 + 700);
            assert_eq!(separators[0], 1);
            for pair in separators.windows(2) {
                let snippet = workshop.text(&piece.ids[pair[0]..pair[1]]);
                let (path, text) = snippet.split_once('\n').unwrap();
                let n: usize =
                    path.strip_prefix("src/").and_then(|path| path.strip_suffix(".lua")).unwrap().parse().unwrap();
                assert!(n != 0 && texts[n].contains(text), "{snippet}");
            }
            let best = workshop.text(&piece.ids[separators[separators.len() - 2]..last]);
            assert!(best.starts_with("src/2.lua\nlocal alpha"), "{best}");
            assert!(piece.is_counted[..=last].iter().all(|is_counted| !is_counted));
            assert_eq!(workshop.text(&piece.ids[last..]), texts[0]);
            assert!(piece.is_counted[last + 1..].iter().all(|is_counted| *is_counted));
        }
        let with_snippets = |snippet_tokens| {
            let ask = Ask { snippet_tokens, ..workshop.ask(0) };
            (0..50).filter(|&seed| workshop.piece(&ask, seed).ids.contains(&separator)).count()
        };
        assert!(with_snippets(700) > 40 && with_snippets(0) == 0 && with_snippets(5) == 0);
    }

    #[test]
    fn tokens_have_the_language_of_the_region_that_they_begin_in() {
        let own = ROW_LANGUAGE;
        assert_eq!(token_languages(&[0, 3, 5, 9, 12, 14], &[(3..9, 7), (12..13, 2)]), [own, 7, 7, own, 2, own]);
        assert_eq!(token_languages(&[0, 2], &[(0..1, 4), (1..5, 3)]), [4, 3]);
        assert_eq!(token_languages(&[0, 2], &[]), [own, own]);
        // In the order of the layout the suffix comes first.
        let workshop = Workshop::of(store(&[TEXT]));
        let (text, spelled) = workshop.maker().spell(workshop.tokenizer.encode(TEXT).unwrap());
        let text = String::from_utf8(text).unwrap();
        let cut = TEXT.find("eturn").unwrap();
        let (suffix, prefix) = workshop.maker().split(&text, &spelled, cut).unwrap().unwrap();
        let region = TEXT.find("if a").unwrap()..TEXT.find(" * 10").unwrap();
        let mut piece = Piece::default();
        piece.push_text(&suffix, true, &[(region.clone(), 5)]);
        piece.push_text(&prefix, true, &[(region.clone(), 5)]);
        let inside: Vec<u32> =
            piece.ids.iter().zip(&piece.language).filter(|(_, l)| **l == 5).map(|(id, _)| *id).collect();
        let expected = TEXT[cut..region.end].to_owned() + &TEXT[region.start..cut];
        let (got, expected) = (workshop.text(&inside), expected.as_str());
        // A token that begins inside may reach beyond, and one that began before may end inside.
        assert!(
            got.contains("if a then") && got.starts_with("eturn a") && got.len().abs_diff(expected.len()) < 8,
            "{got}"
        );
    }

    #[test]
    fn damaged_tokens_are_an_error() {
        let mut workshop = Workshop::of(store(&[TEXT]));
        workshop.texts.vocabulary = super::super::vocabulary::Vocabulary::of(&tiny());
        let error = workshop.maker().piece(&workshop.ask(0), &mut Rng::keyed(0, "piece", &[])).unwrap_err();
        assert!(error.to_string().contains("tokens of lua: id"), "{error}");
    }

    fn tiny() -> Tokenizer {
        let options = TokenizerOptions { vocab_size: 263, min_frequency: 2, ..TokenizerOptions::default() };
        Tokenizer::train(["a"].iter(), &options).unwrap()
    }
}
