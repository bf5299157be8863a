//! Several who answer at once, each the next question that nobody has; their answers in the order of the questions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::Scope;

use anyhow::{Context, Result};

use super::answer::{Answer, Answerer};
use super::question::Question;

/// Answers that come in any order.
pub(super) struct Ahead {
    early: BTreeMap<usize, Result<Answer>>,
    answers: Receiver<(usize, Result<Answer>)>,
}

impl Ahead {
    /// Has each of `clients`, on a thread of its own, answer questions, which come with their numbers. When `self` is gone, each stops after
    /// the answer that it is at.
    pub(super) fn start<'scope, 'env: 'scope, A: Answerer + Send + 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        clients: impl IntoIterator<Item = A>,
        questions: Vec<(usize, &'env Question)>,
        max_new_tokens: usize,
    ) -> Ahead {
        let (sender, answers) = channel();
        let (questions, turn) = (Arc::new(questions), Arc::new(AtomicUsize::new(0)));
        for mut client in clients {
            let (sender, questions, turn) = (sender.clone(), questions.clone(), turn.clone());
            scope.spawn(move || {
                while let Some(&(at, question)) = questions.get(turn.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send((at, client.answer(question, max_new_tokens))).is_err() {
                        return;
                    }
                }
            });
        }
        Ahead { early: BTreeMap::new(), answers }
    }

    /// Waits for the answer to the question of that number.
    pub(super) fn take(&mut self, number: usize) -> Result<Answer> {
        loop {
            if let Some(answer) = self.early.remove(&number) {
                return answer;
            }
            let (at, answer) = self.answers.recv().context("nobody answers any more")?;
            self.early.insert(at, answer);
        }
    }
}
