//! Fill in the middle: the one layout that training and serving share.
//!
//! Suffix first, so that a keystroke appends to the prompt and the cache stays valid (Bavarian et al. 2022, arXiv 2207.14255, §3, SPM):
//! `<|lang:X|><|fim_prefix|><|fim_suffix|>SUFFIX<|fim_middle|>PREFIX MIDDLE<|endoftext|>`; with no suffix `<|lang:X|>TEXT<|endoftext|>`.
//! A blank suffix is none ([`has_suffix`]): a caret at the end of a file gives the plain layout, and so does a training piece that is cut
//! at the end of its text.
//! Prefix and middle are tokenized as one text; at the caret the last token is withdrawn and its bytes are healed.

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
}

/// A prompt, and the bytes with which its continuation must begin.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Bytes before the caret that are not in `ids`: the answer's first tokens must spell them.
    pub heal: Vec<u8>,
}

/// Whether the text after the caret is worth the layout of fill in the middle, in training and in serving.
pub fn has_suffix(suffix: &str) -> bool {
    !suffix.trim().is_empty()
}

/// A training sequence: `text` with its `cut` (a byte range) as the middle, or plain.
///
/// A cut that lies off a character boundary or outside the text, or that has a blank suffix, is ignored.
pub fn sequence(
    tokenizer: &Tokenizer,
    language: Option<&str>,
    text: &str,
    cut: Option<Range<usize>>,
) -> Result<Vec<u32>> {
    let mut ids = Vec::with_capacity(text.len() / 3 + 8);
    ids.extend(language.and_then(|name| tokenizer.language_token(name)));
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

/// The prompt for a caret between `prefix` and `suffix`.
///
/// Where the prefix is longer than its share, its beginning is dropped in large steps at line starts, so that the prompt keeps its
/// first tokens from one keystroke to the next.
pub fn prompt(
    tokenizer: &Tokenizer,
    language: Option<&str>,
    prefix: &str,
    suffix: &str,
    budget: &PromptBudget,
) -> Result<Prompt> {
    let mut ids = Vec::new();
    ids.extend(language.and_then(|name| tokenizer.language_token(name)));
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
        let ids = sequence(&tokenizer, Some("python"), text, Some(4..13)).unwrap();
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
        let budget = PromptBudget { max_tokens: 64, suffix_tokens: 16 };
        let fim = tokenizer.special().fim.unwrap();
        for suffix in ["", "\n", "  \n\n", "\nend"] {
            let prompt = prompt(&tokenizer, Some("lua"), "x = 1\n", suffix, &budget).unwrap().ids;
            let text = format!("x = 1\n{suffix}");
            let sequence = sequence(&tokenizer, Some("lua"), &text, Some(2..6)).unwrap();
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
        let budget = PromptBudget { max_tokens: 64, suffix_tokens: 16 };
        for prefix in ["def ad", "for i in ra", "    ", "x = 1", "a\n", "", "pr\u{e9}"] {
            let prompt = prompt(&tokenizer, Some("lua"), prefix, "\nend", &budget).unwrap();
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
        let budget = PromptBudget { max_tokens: 40, suffix_tokens: 10 };
        let text = "1, 2; ".repeat(60);
        let first = |n: usize| prompt(&tokenizer, None, &text[..n], "", &budget).unwrap().ids[..4].to_vec();
        let mut beginnings: Vec<Vec<u32>> = (260..300).map(first).collect();
        beginnings.dedup();
        assert!(beginnings.len() <= 5, "{} beginnings in 40 keystrokes", beginnings.len());
    }

    #[test]
    fn prompt_fits_its_budget() {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 40, suffix_tokens: 10 };
        let prompt =
            prompt(&tokenizer, None, &"print(add(i, 1))\n".repeat(100), &"abc\n".repeat(100), &budget).unwrap();
        assert!(prompt.ids.len() <= 40, "{}", prompt.ids.len());
    }
}
