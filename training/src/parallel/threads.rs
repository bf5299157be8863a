//! Ranks that are threads of one process: what MPI does, without MPI. Tests of every mode run on it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::wire::{Traffic, Wire};

enum Message {
    Bytes(Vec<u8>),
    Values(Vec<f32>),
}

/// One rank.
pub(super) struct Threads {
    rank: usize,
    to: Vec<Sender<Message>>,
    from: Vec<Receiver<Message>>,
    timeout: Duration,
    traffic: Traffic,
}

impl Threads {
    /// `world` ranks that are connected with each other.
    pub(super) fn connect(world: usize) -> Vec<Threads> {
        let mut to: Vec<Vec<Sender<Message>>> = (0..world).map(|_| Vec::new()).collect();
        let mut from = Vec::new();
        for _ in 0..world {
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..world).map(|_| channel()).unzip();
            to.iter_mut().zip(senders).for_each(|(to, sender)| to.push(sender));
            from.push(receivers);
        }
        let ends = to.into_iter().zip(from).enumerate();
        let timeout = Duration::from_secs(60);
        ends.map(|(rank, (to, from))| Threads { rank, to, from, timeout, traffic: Traffic::default() }).collect()
    }

    fn exchange(&self, messages: impl Iterator<Item = Message>) -> Result<Vec<Message>> {
        let world = self.to.len();
        for (rank, (to, message)) in self.to.iter().zip(messages).enumerate() {
            if to.send(message).is_err() {
                bail!("rank {} of {world}: rank {rank} has ended", self.rank);
            }
        }
        let deadline = Instant::now() + self.timeout;
        let receive = |(rank, from): (usize, &Receiver<Message>)| {
            from.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|error| match error {
                RecvTimeoutError::Timeout => {
                    anyhow::anyhow!("rank {} of {world}: rank {rank} is missing ({:?})", self.rank, self.timeout)
                }
                RecvTimeoutError::Disconnected => {
                    anyhow::anyhow!("rank {} of {world}: rank {rank} has ended", self.rank)
                }
            })
        };
        self.from.iter().enumerate().map(receive).collect()
    }
}

impl Wire for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.to.len()
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn all_gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.traffic.add(bytes.len(), self.world() - 1);
        let received = self.exchange((0..self.world()).map(|_| Message::Bytes(bytes.clone())))?;
        let bytes = received.into_iter().map(|message| match message {
            Message::Bytes(bytes) => Ok(bytes),
            Message::Values(_) => bail!("rank {}: another rank is at another place of the run", self.rank),
        });
        bytes.collect()
    }

    fn all_to_all_v(&mut self, parts: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        self.traffic.add_parts(self.rank, &parts);
        let received = self.exchange(parts.into_iter().map(Message::Values))?;
        let values = received.into_iter().map(|message| match message {
            Message::Values(values) => Ok(values),
            Message::Bytes(_) => bail!("rank {}: another rank is at another place of the run", self.rank),
        });
        values.collect()
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `f` on each of `world` ranks at once.
    fn on_ranks<T: Send>(world: usize, f: impl Fn(&mut Threads) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let ranks = Threads::connect(world).into_iter();
            let threads: Vec<_> = ranks
                .map(|mut rank| {
                    scope.spawn({
                        let f = &f;
                        move || f(&mut rank)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_the_same_bits_on_all_ranks_and_those_of_rank_order() {
        let value = |rank: usize, i: usize| 1.0 / (1 + 3 * i + 7 * rank) as f32;
        for (world, n) in [(1, 3), (2, 5), (4, 2), (4, 1001)] {
            let sums = on_ranks(world, |wire| {
                let mut values: Vec<f32> = (0..n).map(|i| value(wire.rank(), i)).collect();
                wire.all_reduce(&mut values).unwrap();
                values
            });
            let expected: Vec<f32> =
                (0..n).map(|i| (1..world).fold(value(0, i), |sum, rank| sum + value(rank, i))).collect();
            assert!(sums.iter().all(|values| *values == expected), "{world} ranks, {n} values");
        }
    }

    #[test]
    fn parts_of_any_length_reach_their_rank_and_are_counted() {
        let all = on_ranks(3, |wire| {
            let parts = (0..3).map(|to| vec![wire.rank() as f32; (wire.rank() + to) % 3]).collect();
            (wire.all_to_all_v(parts).unwrap(), wire.traffic())
        });
        for (to, (received, traffic)) in all.iter().enumerate() {
            let expected: Vec<Vec<f32>> = (0..3).map(|from| vec![from as f32; (from + to) % 3]).collect();
            assert_eq!(*received, expected);
            // To itself a rank sends nothing: three values to the others together, less its own part.
            assert_eq!((traffic.bytes, traffic.messages), (4 * (3 - (2 * to as u64) % 3), 2));
        }
    }

    #[test]
    fn a_rank_that_is_missing_or_has_ended_is_named() {
        let mut ranks = Threads::connect(3);
        let late = ranks.pop().unwrap();
        let mut first = ranks.remove(0);
        first.set_timeout(Duration::from_millis(50));
        let mut second = ranks.pop().unwrap();
        let message = std::thread::scope(|scope| {
            let other = scope.spawn(move || second.barrier().err().map(|error| error.to_string()));
            let message = first.barrier().unwrap_err().to_string();
            drop(first);
            drop(late);
            assert!(other.join().unwrap().unwrap().contains("rank 2 has ended"));
            message
        });
        assert!(message.contains("rank 2 is missing"), "{message}");
    }
}
