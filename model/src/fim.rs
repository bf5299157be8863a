//! Fill in the middle: the one layout that training and serving share.
//!
//! Suffix first, so that a keystroke appends to the prompt and the cache stays valid (Bavarian et al. 2022, arXiv 2207.14255, §3, SPM):
//! `<|lang:X|><|fim_prefix|><|fim_suffix|>SUFFIX<|fim_middle|>PREFIX MIDDLE<|endoftext|>`; with no suffix `<|lang:X|>TEXT<|endoftext|>`.
//! A blank suffix is none ([`has_suffix`]): a caret at the end of a file gives the plain layout, and so does a training piece that is cut
//! at the end of its text.
//! Prefix and middle are tokenized as one text; at the caret the last token is withdrawn and its bytes are healed.
//!
//! Snippets of other files of the project stand directly after the language, the best one last:
//! `<|lang:X|><|file_sep|>PATH\nSNIPPET\n` for each, then one more `<|file_sep|>` that ends them. Where there are none, or the
//! tokenizer has no `<|file_sep|>`, there is nothing.

use std::ops::Range;

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// How many tokens a prompt may have.
#[derive(Clone, Copy, Debug)]
pub struct PromptBudget {
    /// Of the whole prompt.
    pub max_tokens: usize,
    /// Of the text after the caret, within `max_tokens`.
    pub suffix_tokens: usize,
    /// Of snippets with their separators, within `max_tokens`; never more than half of what the suffix's share leaves.
    pub snippet_tokens: usize,
}

impl PromptBudget {
    /// The shares of a prompt of `max_tokens` in an editor: a quarter at most for the suffix, one for snippets, the rest for the prefix.
    pub fn of(max_tokens: usize) -> PromptBudget {
        PromptBudget { max_tokens, suffix_tokens: max_tokens / 4, snippet_tokens: max_tokens / 4 }
    }
}

/// A piece of another file of the same project.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Snippet<'a> {
    /// Path inside the project, with `/` between its parts.
    pub path: &'a str,
    pub text: &'a str,
}

/// A prompt, and the bytes with which its continuation must begin.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Bytes before the caret that are not in `ids`: the answer's first tokens must spell them.
    pub heal: Vec<u8>,
}

/// The ids of snippets and of the separator that ends them; none without snippets or without a token that separates files.
///
/// # Errors
/// What the tokenizer says.
pub fn snippet_ids(tokenizer: &Tokenizer, snippets: &[Snippet<'_>]) -> Result<Vec<u32>> {
    snippet_ids_within(tokenizer, snippets, usize::MAX)
}

/// Whether the text after the caret is worth the layout of fill in the middle, in training and in serving.
pub fn has_suffix(suffix: &str) -> bool {
    !suffix.trim().is_empty()
}

/// A training sequence: `snippets`, then `text` with its `cut` (a byte range) as the middle, or plain.
///
/// A cut that lies off a character boundary or outside the text, or that has a blank suffix, is ignored.
///
/// # Errors
/// What the tokenizer says.
pub fn sequence(
    tokenizer: &Tokenizer,
    language: Option<&str>,
    snippets: &[Snippet<'_>],
    text: &str,
    cut: Option<Range<usize>>,
) -> Result<Vec<u32>> {
    let mut ids = Vec::with_capacity(text.len() / 3 + 8);
    ids.extend(language.and_then(|name| tokenizer.language_token(name)));
    ids.extend(snippet_ids(tokenizer, snippets)?);
    let end = cut.map(|cut| cut.end).filter(|&end| text.get(end..).is_some_and(has_suffix));
    match (end, tokenizer.special().fim) {
        (Some(end), Some(fim)) => {
            ids.extend([fim.prefix, fim.suffix]);
            ids.extend(tokenizer.encode(&text[end..])?);
            ids.push(fim.middle);
            ids.extend(tokenizer.encode(&text[..end])?);
        }
        _ => ids.extend(tokenizer.encode(text)?),
    }
    ids.push(tokenizer.special().end_of_text);
    Ok(ids)
}

/// The prompt for a caret between `prefix` and `suffix`, in a project that has `snippets`.
///
/// Snippets that do not fit are dropped whole, the first ones first. Where the prefix is longer than its share, its beginning is
/// dropped in large steps at line starts, so that the prompt keeps its first tokens from one keystroke to the next.
///
/// # Errors
/// What the tokenizer says.
pub fn prompt(
    tokenizer: &Tokenizer,
    language: Option<&str>,
    snippets: &[Snippet<'_>],
    prefix: &str,
    suffix: &str,
    budget: &PromptBudget,
) -> Result<Prompt> {
    let mut ids = Vec::new();
    ids.extend(language.and_then(|name| tokenizer.language_token(name)));
    // From the budget alone: what the suffix really takes would change the first tokens while one types.
    let snippet_tokens = budget.snippet_tokens.min(budget.max_tokens.saturating_sub(budget.suffix_tokens) / 2);
    ids.extend(snippet_ids_within(tokenizer, snippets, snippet_tokens)?);
    let fim = tokenizer.special().fim.filter(|_| budget.suffix_tokens > 0 && has_suffix(suffix));
    if let Some(fim) = fim {
        ids.extend([fim.prefix, fim.suffix]);
        let mut suffix_ids = tokenizer.encode(head(suffix, budget.suffix_tokens * 8))?;
        suffix_ids.truncate(budget.suffix_tokens);
        ids.extend(suffix_ids);
        ids.push(fim.middle);
    }
    let room = budget.max_tokens.saturating_sub(ids.len()).max(1);
    let mut prefix_ids = tokenizer.encode(&prefix[window_start(prefix, room * 3)..])?;
    let heal = withdraw(tokenizer, &mut prefix_ids);
    ids.extend(&prefix_ids[excess_in_steps(prefix_ids.len(), room)..]);
    if ids.is_empty() {
        ids.push(tokenizer.special().end_of_text);
    }
    Ok(Prompt { ids, heal })
}

/// The ids of the last snippets that take at most `max_tokens` together with the separator that ends them.
fn snippet_ids_within(tokenizer: &Tokenizer, snippets: &[Snippet<'_>], max_tokens: usize) -> Result<Vec<u32>> {
    let Some(file_sep) = tokenizer.special().file_sep else { return Ok(Vec::new()) };
    let mut kept: Vec<Vec<u32>> = Vec::new();
    let mut n_tokens = 1;
    for snippet in snippets.iter().rev() {
        let Snippet { path, text } = snippet;
        let line_end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let ids = tokenizer.encode(&format!("{path}\n{text}{line_end}"))?;
        n_tokens += 1 + ids.len();
        if n_tokens > max_tokens {
            break;
        }
        kept.push(ids);
    }
    kept.reverse();
    Ok(separated(file_sep, kept))
}

/// The layout of snippets that are tokens already (path, line end, text, line end): `file_sep` before each and after the last; nothing
/// for none.
pub fn separated(file_sep: u32, snippets: Vec<Vec<u32>>) -> Vec<u32> {
    let end = (!snippets.is_empty()).then_some(file_sep);
    snippets.into_iter().flat_map(|ids| std::iter::once(file_sep).chain(ids)).chain(end).collect()
}

/// Removes the last token if more text could have made it another token, and returns its bytes.
fn withdraw(tokenizer: &Tokenizer, ids: &mut Vec<u32>) -> Vec<u8> {
    let Some(&last) = ids.last() else { return Vec::new() };
    let bytes = tokenizer.bytes_of(last);
    let stands_alone = bytes.len() > 1 && bytes.iter().all(u8::is_ascii_whitespace)
        || matches!(bytes, [b'\n'] | [b'\t'] | [b'0'..=b'9'] | []);
    if stands_alone {
        return Vec::new();
    }
    let heal = bytes.to_vec();
    ids.pop();
    heal
}

/// How much of `len` to drop so that at most `max` remain, in steps of a quarter of `max`.
fn excess_in_steps(len: usize, max: usize) -> usize {
    let step = (max / 4).max(1);
    (len.saturating_sub(max).div_ceil(step) * step).min(len)
}

/// Byte offset of the line start from which at most `max_bytes` remain, moving in steps of a quarter of that.
fn window_start(prefix: &str, max_bytes: usize) -> usize {
    let at_least = excess_in_steps(prefix.len(), max_bytes);
    if at_least == 0 {
        return 0;
    }
    let from = (at_least..=prefix.len()).find(|&i| prefix.is_char_boundary(i)).unwrap_or(0);
    // A line longer than half the window: cut inside it.
    prefix[from..].find('\n').filter(|&newline| newline < max_bytes / 2).map_or(from, |newline| from + newline + 1)
}

/// The longest beginning of `text` of at most `max_bytes`.
fn head(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::toy;

    #[test]
    fn sequence_is_suffix_first_and_loses_nothing() {
        let tokenizer = toy();
        let text = "def add(a, b):\n    return a + b\n";
        let ids = sequence(&tokenizer, Some("python"), &[], text, Some(4..13)).unwrap();
        let fim = tokenizer.special().fim.unwrap();
        assert_eq!(&ids[..3], [tokenizer.language_token("python").unwrap(), fim.prefix, fim.suffix]);
        let middle = ids.iter().position(|&id| id == fim.middle).unwrap();
        assert_eq!(tokenizer.decode(&ids[3..middle]), &text[13..]);
        assert_eq!(tokenizer.decode(&ids[middle + 1..ids.len() - 1]), &text[..13]);
        assert_eq!(*ids.last().unwrap(), tokenizer.special().end_of_text);
    }

    #[test]
    fn a_blank_suffix_gives_the_plain_layout_in_training_and_in_serving() {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 64, suffix_tokens: 16, snippet_tokens: 0 };
        let fim = tokenizer.special().fim.unwrap();
        for suffix in ["", "\n", "  \n\n", "\nend"] {
            let prompt = prompt(&tokenizer, Some("lua"), &[], "x = 1\n", suffix, &budget).unwrap().ids;
            let text = format!("x = 1\n{suffix}");
            let sequence = sequence(&tokenizer, Some("lua"), &[], &text, Some(2..6)).unwrap();
            assert_eq!(
                [&prompt, &sequence].map(|ids| ids.contains(&fim.suffix)),
                [has_suffix(suffix); 2],
                "{suffix:?}"
            );
        }
    }

    #[test]
    fn prompt_and_heal_spell_the_prefix() {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 64, suffix_tokens: 16, snippet_tokens: 0 };
        for prefix in ["def ad", "for i in ra", "    ", "x = 1", "a\n", "", "pr\u{e9}"] {
            let prompt = prompt(&tokenizer, Some("lua"), &[], prefix, "\nend", &budget).unwrap();
            let fim = tokenizer.special().fim.unwrap();
            let middle = prompt.ids.iter().position(|&id| id == fim.middle).unwrap();
            let kept = prompt.ids[middle + 1..].iter().flat_map(|&id| tokenizer.bytes_of(id));
            let bytes: Vec<u8> = kept.chain(&prompt.heal).copied().collect();
            assert_eq!(prefix.as_bytes(), bytes, "{prefix:?}");
        }
    }

    #[test]
    fn prompt_window_moves_in_steps() {
        let line = "    x = add(x, 1)\n";
        let mut starts = Vec::new();
        for n in 0..400 {
            let text = line.repeat(40) + &line.repeat(30)[..n];
            starts.push(window_start(&text, 600));
            assert!(text.len() - starts[n] <= 600);
        }
        starts.dedup();
        assert!(starts.len() <= 4, "{starts:?}");
    }

    #[test]
    fn a_prompt_of_short_tokens_keeps_its_beginning_while_one_types() {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 40, suffix_tokens: 10, snippet_tokens: 0 };
        let text = "1, 2; ".repeat(60);
        let first = |n: usize| prompt(&tokenizer, None, &[], &text[..n], "", &budget).unwrap().ids[..4].to_vec();
        let mut beginnings: Vec<Vec<u32>> = (260..300).map(first).collect();
        beginnings.dedup();
        assert!(beginnings.len() <= 5, "{} beginnings in 40 keystrokes", beginnings.len());
    }

    #[test]
    fn prompt_fits_its_budget() {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 40, suffix_tokens: 10, snippet_tokens: 0 };
        let prompt =
            prompt(&tokenizer, None, &[], &"print(add(i, 1))\n".repeat(100), &"abc\n".repeat(100), &budget).unwrap();
        assert!(prompt.ids.len() <= 40, "{}", prompt.ids.len());
    }

    const SNIPPETS: [Snippet<'static>; 3] = [
        Snippet { path: "a.py", text: "def add(a, b):\n    return a + b\n" },
        Snippet { path: "lib/b.py", text: "x = 1" },
        Snippet { path: "empty.py", text: "" },
    ];

    #[test]
    fn snippets_stand_between_separators_and_end_in_a_line_end() {
        let tokenizer = toy();
        let sep = tokenizer.special().file_sep.unwrap();
        let ids = snippet_ids(&tokenizer, &SNIPPETS).unwrap();
        let parts: Vec<String> = ids.split(|&id| id == sep).map(|part| tokenizer.decode(part)).collect();
        assert_eq!(parts, ["", "a.py\ndef add(a, b):\n    return a + b\n", "lib/b.py\nx = 1\n", "empty.py\n", ""]);
        assert!(snippet_ids(&tokenizer, &[]).unwrap().is_empty());
    }

    #[test]
    fn a_tokenizer_without_a_separator_shows_no_snippets() {
        let json = toy().to_json().unwrap().replace("<|file_sep|>", "<|other|>");
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        let sequence = |snippets| sequence(&tokenizer, Some("python"), snippets, "x = 1\n", None).unwrap();
        assert_eq!(sequence(&SNIPPETS), sequence(&[]));
    }

    #[test]
    fn training_and_serving_agree_token_for_token() {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 512, suffix_tokens: 128, snippet_tokens: 128 };
        let text = "for i in range(10):\n    print(add(i, 1))\n\nx = add(1, 2)\n";
        // Carets at which a token of the training text begins, or one that is a single token before them.
        let caret = |word: &str, n_after: usize| text.find(word).unwrap() + n_after;
        for (start, n_middle) in
            [(caret("    p", 0), 9), (caret("print", 0), 3), (caret("x =", 1), 4), (caret("x =", 0), 14)]
        {
            let end = start + n_middle;
            for snippets in [&[][..], &SNIPPETS[..1], &SNIPPETS] {
                let cut = (end < text.len()).then_some(start..end);
                let trained = sequence(&tokenizer, Some("python"), snippets, text, cut).unwrap();
                let (prefix, suffix) = (&text[..start], &text[end..]);
                let served = prompt(&tokenizer, Some("python"), snippets, prefix, suffix, &budget).unwrap();
                assert!(trained.starts_with(&served.ids), "{start}..{end}, {} snippets", snippets.len());
                let rest = trained[served.ids.len()..].iter().flat_map(|&id| tokenizer.bytes_of(id));
                let rest: Vec<u8> = rest.copied().collect();
                assert_eq!(rest, [&served.heal, &text.as_bytes()[start..end]].concat(), "{start}..{end}");
            }
        }
    }

    #[test]
    fn snippets_that_do_not_fit_are_dropped_whole_and_the_first_ones_first() {
        let tokenizer = toy();
        let shown = |max_tokens, snippet_tokens| {
            let budget = PromptBudget { max_tokens, suffix_tokens: 10, snippet_tokens };
            let ids = prompt(&tokenizer, None, &SNIPPETS, "x = ", "\ny\n", &budget).unwrap().ids;
            assert!(ids.len() <= max_tokens, "{} of {max_tokens}", ids.len());
            let fim = tokenizer.special().fim.unwrap();
            ids[..ids.iter().position(|&id| id == fim.prefix).unwrap()].to_vec()
        };
        for first in 0..=SNIPPETS.len() {
            let exact = snippet_ids(&tokenizer, &SNIPPETS[first..]).unwrap();
            assert_eq!(shown(200, exact.len()), exact);
            let fewer = snippet_ids(&tokenizer, &SNIPPETS[(first + 1).min(SNIPPETS.len())..]).unwrap();
            assert_eq!(shown(200, exact.len().saturating_sub(1)), fewer);
        }
        // The share of the text before the caret is kept, whatever the snippets were promised.
        (4..60).for_each(|max_tokens| drop(shown(max_tokens + 16, usize::MAX)));
    }
}
