//! Whether an answer works: the program around it is run with its tests.

use std::collections::BTreeMap;

use anyhow::Result;
use xxhash_rust::xxh3::xxh3_64;

use super::question::{Ending, Question};
use super::sandbox::{Limits, Outcome, Sandbox};
use super::toolchain::Toolchain;

/// Runs answers, and the right ones to know that the tests work here.
pub struct Checker {
    sandbox: Sandbox,
    limits: Limits,
    /// By language: whether its programs can be run.
    is_there: BTreeMap<&'static str, bool>,
    unfit: BTreeMap<&'static str, usize>,
    /// By hash of a program: whether it passed.
    known: BTreeMap<u64, bool>,
}

impl Checker {
    /// # Errors
    /// As of [`Sandbox::open`].
    pub fn open() -> Result<Checker> {
        let (is_there, unfit, known) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Checker { sandbox: Sandbox::open()?, limits: Limits::default(), is_there, unfit, known })
    }

    /// Whether the program with `answer` passes its tests; none for a question without tests, a language whose toolchain is not here, and
    /// tests that fail with the right answer too, need what is not here, or pass without any.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn passes(&mut self, question: &Question, answer: &str) -> Result<Option<bool>> {
        let Some(tests) = &question.tests else { return Ok(None) };
        let Some(toolchain) = self.toolchain(question.language)? else { return Ok(None) };
        let tests_nothing =
            tests.empty.as_deref().map(|program| self.runs(toolchain, program)).transpose()? == Some(true);
        let right = tests.right.clone().unwrap_or_else(|| program(question, &tests.text, &question.truth));
        if tests_nothing || !self.runs(toolchain, &right)? {
            *self.unfit.entry(question.language).or_default() += 1;
            return Ok(None);
        }
        let passes = self.runs(toolchain, &program(question, &tests.text, answer))?;
        // An answer can end the program before its tests.
        let untested = program(question, &format!("\n{}\n", toolchain.failing), answer);
        Ok(Some(passes && !self.runs(toolchain, &untested)?))
    }

    /// Questions by language that do not count: their tests fail with the right answer, need what is not here, or pass without an answer.
    pub fn unfit(&self) -> &BTreeMap<&'static str, usize> {
        &self.unfit
    }

    /// Languages among those asked for that nothing here can run.
    pub fn missing(&self) -> Vec<&'static str> {
        self.is_there.iter().filter(|(_, there)| !**there).map(|(language, _)| *language).collect()
    }

    /// What runs programs of a language, if it is here.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn toolchain(&mut self, language: &'static str) -> Result<Option<&'static Toolchain>> {
        let toolchain = Toolchain::of(language);
        if !self.is_there.contains_key(language) {
            let probe = |toolchain: &Toolchain| self.sandbox.run(&[], &toolchain.probe(), &self.limits);
            let there = toolchain.map(probe).transpose()? == Some(Outcome::Passed);
            self.is_there.insert(language, there);
        }
        Ok(toolchain.filter(|_| self.is_there[language]))
    }

    fn runs(&mut self, toolchain: &Toolchain, program: &str) -> Result<bool> {
        let program = format!("{}{program}", toolchain.prelude);
        let hash = xxh3_64(format!("{}\0{program}", toolchain.language).as_bytes());
        if let Some(&passed) = self.known.get(&hash) {
            return Ok(passed);
        }
        let address_mb = self.limits.address_mb.filter(|_| !toolchain.is_reserving());
        let limits = Limits { address_mb, ..self.limits };
        let outcome = self.sandbox.run(&[(toolchain.file, &program)], toolchain.script, &limits)?;
        self.known.insert(hash, outcome == Outcome::Passed);
        Ok(outcome == Outcome::Passed)
    }
}

fn program(question: &Question, tests: &str, answer: &str) -> String {
    let Question { prefix, suffix, truth, .. } = question;
    // What the cut at a line's end took away.
    let was_cut = question.ending != Ending::Text && truth.ends_with('\n') && !answer.ends_with('\n');
    let newline = if was_cut { "\n" } else { "" };
    format!("{prefix}{answer}{newline}{suffix}{tests}")
}

#[cfg(test)]
mod tests {
    use super::super::question::Tests;
    use super::super::question::tests::question;
    use super::super::sandbox::tests::sandbox_or_skip;
    use super::*;

    #[test]
    fn an_answer_passes_where_its_program_does_and_counts_where_the_right_one_would() {
        if sandbox_or_skip().is_none() {
            return;
        }
        let mut checker = Checker::open().unwrap();
        let mut asked = question("1", "python", "single line");
        asked.prefix = "def f(x):\n".to_owned();
        (asked.truth, asked.suffix) = ("    y = x + 1\n".to_owned(), "    return y\n".to_owned());
        assert_eq!(checker.passes(&asked, "    y = x + 1").unwrap(), None);
        let tests = |text: &str| {
            Some(Tests { text: text.to_owned(), empty: Some(format!("def f(x): pass\n{text}")), right: None })
        };
        asked.tests = tests("\nassert f(1) == 2\n");
        assert_eq!(checker.passes(&asked, "    y = 1 + x").unwrap(), Some(true));
        assert_eq!(checker.passes(&asked, "    y = x").unwrap(), Some(false));
        assert_eq!(checker.passes(&asked, "    y = (").unwrap(), Some(false));
        assert!(checker.unfit().is_empty());
        asked.tests = tests("\ndef test(): assert f(1) == 2\n");
        assert_eq!(checker.passes(&asked, "    y = x + 2").unwrap(), None);
        asked.tests = tests("\nassert f(1) == 3\n");
        assert_eq!(checker.passes(&asked, "    y = x + 2").unwrap(), None);
        assert_eq!(checker.unfit()["python"], 2);
        asked.language = "cobol";
        assert_eq!(checker.passes(&asked, "    y = x + 2").unwrap(), None);
    }

    #[test]
    fn an_answer_that_ends_the_program_before_its_tests_does_not_pass() {
        if sandbox_or_skip().is_none() {
            return;
        }
        let mut checker = Checker::open().unwrap();
        for (language, prefix, answer, right) in [
            ("bash", "", "exit 0", ":"),
            (
                "go",
                "package a\nimport (\"os\"; \"testing\")\nfunc TestA(t *testing.T) {",
                "os.Exit(0) }",
                "_ = os.Args }",
            ),
            (
                "go",
                "package a\nimport (\"os\"; \"testing\")\nfunc TestA(t *testing.T) {}\n",
                "func TestMain(m *testing.M) { os.Exit(0) }",
                "var _ = os.Args",
            ),
            ("javascript", "", "return;", ";"),
            ("lua", "", "os.exit(0)", "local y"),
            ("perl", "", "__END__", ";"),
            ("php", "<?php\n", "return 0;", ";"),
            ("python", "", "exit()", "pass"),
            ("r", "", "quit()", "TRUE"),
            ("ruby", "", "__END__", "1"),
            ("tcl", "", "return", ""),
        ] {
            let mut asked = question(language, language, "whole");
            (asked.prefix, asked.suffix, asked.truth) = (prefix.to_owned(), "\n".to_owned(), right.to_owned());
            let failing = Toolchain::of(language).unwrap().failing;
            asked.tests = Some(Tests { text: "\n".to_owned(), empty: None, right: None });
            if let Some(passed) = checker.passes(&asked, right).unwrap() {
                assert!(passed, "{language}");
                assert_eq!(checker.passes(&asked, answer).unwrap(), Some(false), "{language}: {answer}");
                assert_eq!(checker.passes(&asked, failing).unwrap(), Some(false), "{language}: {failing}");
            } else {
                assert!(checker.missing().contains(&language), "{language}: the right program fails");
            }
        }
    }

    #[test]
    fn failed_assertions_fail_in_every_language_that_is_here() {
        if sandbox_or_skip().is_none() {
            return;
        }
        let mut checker = Checker::open().unwrap();
        for (language, right, wrong) in [
            ("bash", "[[ 1 == 1 ]] || exit 1", "[[ 1 == 2 ]] || exit 1"),
            (
                "c",
                "#include <assert.h>\nint main() { assert(1 == 1); }",
                "#include <assert.h>\nint main() { assert(1 == 2); }",
            ),
            (
                "cpp",
                "#include <cassert>\nint main() { assert(1 == 1); }",
                "#include <cassert>\nint main() { assert(1 == 2); }",
            ),
            (
                "go",
                "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { if 1 != 1 { t.Fail() } }",
                "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { if 1 != 2 { t.Fail() } }",
            ),
            ("javascript", "console.assert(1 === 1)", "console.assert(1 === 2)"),
            (
                "java",
                "class Main { public static void main(String[] a) { assert 1 == 1; } }",
                "class Main { public static void main(String[] a) { assert 1 == 2; } }",
            ),
            ("perl", "die unless 1 == 1;", "die unless 1 == 2;"),
            // A test called `main` does not make the file a program.
            (
                "rust",
                "#[cfg(test)]\nmod tests {\n    #[test]\n    fn main() { assert!(1 == 1); }\n}",
                "#[cfg(test)]\nmod tests {\n    #[test]\n    fn main() { assert!(1 == 2); }\n}",
            ),
        ] {
            let mut asked = question(language, language, "whole");
            asked.prefix.clear();
            (asked.truth, asked.tests) =
                (right.to_owned(), Some(Tests { text: "\n".to_owned(), empty: None, right: None }));
            if let Some(passed) = checker.passes(&asked, wrong).unwrap() {
                assert!(!passed, "{language}");
            } else {
                assert!(checker.missing().contains(&language), "{language}: the right program fails");
            }
        }
    }
}
