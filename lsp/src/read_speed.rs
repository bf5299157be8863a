//! How fast this machine reads prompts, and so how long they may be: a long one that is not read in time is no answer.

use std::time::Duration;

/// Prompts are not cut below this for it.
const LEAST_TOKENS: usize = 256;
/// Fewer tokens say nothing: their first pass finds weights that are not in memory yet.
const LEAST_MEASURED: usize = 128;

/// Tokens a second, once a prompt was read.
#[derive(Debug, Default)]
pub(crate) struct ReadSpeed(Option<f64>);

impl ReadSpeed {
    /// The longest prompt, `most` tokens or a half, a quarter of them and so on, that is read in half of `timeout`. Steps are wide, so that
    /// the text in view begins at the same place from one request to the next and stays computed.
    pub(crate) fn most_tokens(&self, most: usize, timeout: Duration) -> usize {
        let Some(tokens_per_s) = self.0 else { return most };
        let in_time = tokens_per_s * timeout.as_secs_f64() / 2.0;
        let mut n = most;
        while n / 2 >= LEAST_TOKENS && n as f64 > in_time {
            n /= 2;
        }
        n
    }

    /// `n_tokens` took `elapsed`.
    pub(crate) fn saw(&mut self, n_tokens: usize, elapsed: Duration) {
        if n_tokens < LEAST_MEASURED {
            return;
        }
        let now = n_tokens as f64 / elapsed.as_secs_f64().max(1e-6);
        self.0 = Some(self.0.map_or(now, |before| (before + now) / 2.0));
    }

    /// A prompt of which `n_tokens` were there was given up after `elapsed`, of `timeout`: as slow as that, or slower.
    pub(crate) fn gave_up(&mut self, n_tokens: usize, elapsed: Duration, timeout: Duration) {
        if elapsed * 2 >= timeout {
            self.saw(n_tokens.max(LEAST_MEASURED), elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_as_long_as_is_read_in_half_of_the_time() {
        let timeout = Duration::from_secs(2);
        let mut speed = ReadSpeed::default();
        assert_eq!(speed.most_tokens(2048, timeout), 2048, "nothing is known yet");
        speed.saw(100, Duration::from_secs(60));
        assert_eq!(speed.most_tokens(2048, timeout), 2048, "too few to tell");
        speed.saw(2000, Duration::from_secs(2));
        assert_eq!(speed.most_tokens(2048, timeout), 512, "1,000 a second");
        assert_eq!(speed.most_tokens(2048, timeout * 10), 2048);
        assert_eq!(speed.most_tokens(300, Duration::from_millis(1)), 300, "no prompt is cut below 256");
        // Faster again, it wavers no more than by half.
        speed.saw(2000, Duration::from_secs(1));
        assert_eq!(speed.most_tokens(2048, timeout), 1024);
    }

    #[test]
    fn a_prompt_that_was_given_up_late_says_how_slow_the_machine_is() {
        let timeout = Duration::from_secs(2);
        let mut speed = ReadSpeed::default();
        speed.gave_up(0, Duration::from_millis(5), timeout);
        assert_eq!(speed.most_tokens(2048, timeout), 2048, "a newer request came: that says nothing");
        speed.gave_up(0, timeout, timeout);
        assert_eq!(speed.most_tokens(2048, timeout), 256);
    }
}
