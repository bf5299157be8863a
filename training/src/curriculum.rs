//! When each language is to begin, by a run that trained on all of them from the start.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::report::loss_curve::RunCurves;

/// The first step of each language that does not begin with the first of `n_steps`: one whose loss on the valid split was lowest `s` steps
/// into the run in the folder `dir` begins `s` steps before the end (Elbayad et al. 2023, arXiv 2212.07571, curriculum counted from the
/// end). One that was still learning at the end begins at once.
///
/// # Errors
/// A run without losses by language; one in which all languages were best before its end, so that none would begin.
pub fn from_run(dir: &Path, n_steps: u64) -> Result<BTreeMap<String, u64>> {
    let path = dir.join("metrics.jsonl");
    let curves = RunCurves::read(&path)?;
    let steps_per_token = curves.n_steps as f64 / curves.n_tokens.max(1) as f64;
    let mut starts = BTreeMap::new();
    let mut n_languages = 0;
    for (name, points) in &curves.valid {
        let (Some(language), Some(last)) = (name.strip_prefix("loss/"), points.last()) else { continue };
        n_languages += 1;
        let best = points.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(last);
        let steps = (best.0 * steps_per_token).round() as u64;
        if best.0 < last.0 && steps < n_steps {
            starts.insert(language.to_owned(), n_steps - steps);
        }
    }
    let origin = path.display();
    ensure!(n_languages > 0, "{origin}: no loss of a language: expected a run with eval.every_steps above 0");
    ensure!(starts.len() < n_languages, "{origin}: every language was best before the end: expected one to begin with");
    Ok(starts)
}

/// Refuses a curriculum that makes no run, as far as `languages` are named; the loader knows those of the text.
///
/// # Errors
/// A language that begins after the end, or is none of the run; a single language; none that begins at once.
pub fn validate(curriculum: &BTreeMap<String, u64>, languages: &[String], n_steps: u64) -> Result<()> {
    if let Some((name, step)) = curriculum.iter().find(|(_, step)| **step >= n_steps) {
        bail!("data.curriculum.{name} = {step}: expected a step below n_steps = {n_steps}");
    }
    if languages.is_empty() || curriculum.is_empty() {
        return Ok(());
    }
    let all = languages.join(", ");
    if let Some(unknown) = curriculum.keys().find(|name| !languages.contains(name)) {
        bail!("data.curriculum: {unknown}: expected names of data.languages = {all}");
    }
    ensure!(
        languages.len() > 1,
        "data.curriculum with data.languages = {all}: expected several, of which some begin later"
    );
    let begins = languages.iter().any(|name| curriculum.get(name).is_none_or(|step| *step == 0));
    ensure!(begins, "data.curriculum: expected a language that is drawn from step 0 on");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(valid: &[(u32, f64, f64)]) -> Result<BTreeMap<String, u64>> {
        let dir = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for step in 1..=400u32 {
            text += "{\"kind\": \"train\", \"loss\": 3.0, \"n_tokens\": 10, \"elapsed_s\": 1.0}\n";
            for (_, lua, python) in valid.iter().filter(|of| of.0 == step) {
                text += &format!(
                    "{{\"kind\": \"valid\", \"loss\": 1.0, \"loss/lua\": {lua}, \"loss/python\": {python}}}\n"
                );
            }
        }
        std::fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
        from_run(dir.path(), 400)
    }

    #[test]
    fn a_language_that_was_best_early_begins_late() {
        let starts = run(&[(100, 2.0, 3.0), (200, 2.2, 2.5), (400, 2.9, 2.1)]).unwrap();
        assert_eq!(starts, BTreeMap::from([("lua".to_owned(), 300)]));
        assert!(run(&[(100, 3.0, 3.0), (400, 2.0, 2.0)]).unwrap().is_empty());
    }

    #[test]
    fn runs_that_say_nothing_are_refused() {
        assert!(run(&[]).unwrap_err().to_string().contains("eval.every_steps"));
        let error = run(&[(100, 2.0, 2.0), (400, 3.0, 3.0)]).unwrap_err().to_string();
        assert!(error.contains("every language was best before the end"), "{error}");
    }

    #[test]
    fn curricula_that_make_no_run_are_named() {
        let error = |languages: &[&str], curriculum: &[(&str, u64)]| {
            let languages: Vec<String> = languages.iter().map(ToString::to_string).collect();
            let curriculum = curriculum.iter().map(|(name, step)| (name.to_string(), *step)).collect();
            validate(&curriculum, &languages, 10).err().map_or_else(String::new, |error| error.to_string())
        };
        assert_eq!(error(&["lua", "rust"], &[("rust", 5)]), "");
        assert_eq!(error(&["lua"], &[]), "");
        assert!(error(&["lua"], &[("lua", 5)]).contains("data.languages = lua: expected several"));
        assert!(error(&["lua", "rust"], &[("cobol", 5)]).contains("data.curriculum: cobol: expected names of"));
        assert!(
            error(&["lua", "rust"], &[("lua", 2), ("rust", 5)]).contains("a language that is drawn from step 0 on")
        );
        assert!(error(&[], &[("lua", 10)]).contains("data.curriculum.lua = 10: expected a step below n_steps = 10"));
    }
}
