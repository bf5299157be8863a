//! [`Mesh`]: the group of ranks that train one model together, as the training loop sees it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use multicoder_model::{CodeLm, Gradients, MoeConfig};
use toml::{Table, Value};

use super::exchange::Exchange;
use super::link::Link;
use super::sums::{Sums, stretches};
use super::threads::Threads;
use super::wire::Traffic;
use super::{Backend, Layout, Mode, ParallelConfig};
use crate::config::RunConfig;
use crate::data::packer::Sequence;

/// What the launcher says of this process, before any rank has spoken to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// The number of this rank on its machine.
    pub local: usize,
    /// The environment variable that says so.
    pub by: &'static str,
}

/// Environment variables of launchers: number of ranks, this rank, and its number on its machine. Open MPI, MPICH and its relatives,
/// SLURM's `srun`, torchrun.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"],
    ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"],
    ["WORLD_SIZE", "RANK", "LOCAL_RANK"],
];

impl Launch {
    /// Reads the environment; one rank where no launcher has left a trace.
    pub fn from_environment() -> Launch {
        let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
        let launch = |[world, rank, local]: &[&'static str; 3]| {
            let (by, local) = (*world, number(local).unwrap_or(0));
            Some(Launch { rank: number(rank)?, world: number(world)?, local, by })
        };
        LAUNCHERS.iter().find_map(launch).unwrap_or(Launch { rank: 0, world: 1, local: 0, by: "no launcher" })
    }

    /// The GPU of this rank, of `n` that it sees: ranks of one machine take one each, and where there is but one, that.
    pub fn gpu(&self, n: usize) -> usize {
        self.local % n.max(1)
    }
}

/// The ranks of a run; alone, all that they would say to each other is known.
pub struct Mesh {
    link: Option<Arc<Link>>,
    timeout: Duration,
    join_timeout: Duration,
    has_met: bool,
    division: Option<Division>,
    reported: (Traffic, f64),
}

/// What falls to this rank of a certain model.
struct Division {
    layout: Layout,
    sums: Sums,
    exchange: Option<Arc<Exchange>>,
}

impl Mesh {
    /// One process, no communication: the reference that every other mode equals.
    pub fn single() -> Mesh {
        let timeout = Duration::ZERO;
        Mesh { link: None, timeout, join_timeout: timeout, has_met: true, division: None, reported: Default::default() }
    }

    /// Meets the other ranks that the launcher started.
    ///
    /// # Errors
    /// Another number of ranks than `parallel.world_size`, a mode that does not fit the launch, ranks that do not come in time.
    pub fn join(config: &ParallelConfig) -> Result<Mesh> {
        let Launch { world, by, .. } = Launch::from_environment();
        let expected = config.world_size;
        ensure!(
            expected == 0 || expected == world,
            "parallel.world_size = {expected}: the launcher started {world} (by {by}); start as many, or set it to {world} or 0"
        );
        let link = match (config.mode, config.backend) {
            (Mode::Single, _) => {
                ensure!(
                    world == 1,
                    "parallel.mode = \"single\": the launcher started {world} ranks (by {by}), which would train the same model \
                     {world} times; set parallel.mode, or start one"
                );
                return Ok(Mesh::single());
            }
            _ if world == 1 => {
                let alone = Threads::connect(1).pop().context("one rank")?;
                Link::start(Mesh::seconds(config.join_timeout_s), move || Ok(alone))?
            }
            (_, Backend::Mpi) => connect_mpi(config)?,
            (_, Backend::Nccl) => connect_nccl(config)?,
        };
        ensure!(
            link.world == world,
            "the ranks are {} by MPI and {world} by the launcher ({by}): the launcher and the MPI library are not of one kind",
            link.world
        );
        Ok(Mesh::over(link, config))
    }

    /// `world` ranks of this process, each for a thread of its own.
    pub fn threads(world: usize, config: &ParallelConfig) -> Result<Vec<Mesh>> {
        let mesh = |wire| Ok(Mesh::over(Link::start(Mesh::seconds(config.join_timeout_s), move || Ok(wire))?, config));
        Threads::connect(world).into_iter().map(mesh).collect()
    }

    fn over(link: Link, config: &ParallelConfig) -> Mesh {
        Mesh {
            link: Some(Arc::new(link)),
            timeout: Mesh::seconds(config.timeout_s),
            join_timeout: Mesh::seconds(config.join_timeout_s),
            has_met: false,
            division: None,
            reported: Default::default(),
        }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.rank)
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.link.as_ref().map_or(1, |link| link.world)
    }

    /// Whether this rank is the one that speaks and writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Checks that `table`, which decides what a run computes, is the same on all ranks. The first call is the one at which they meet:
    /// it has `join_timeout_s`.
    ///
    /// # Errors
    /// The first rank that differs from rank 0, with what differs; on all ranks alike. A rank that does not come.
    pub fn agree(&mut self, table: &Table) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let timeout = if self.has_met { self.timeout } else { self.join_timeout };
        self.has_met = true;
        let text = toml::to_string(table).context("configuration cannot be written as TOML")?;
        let texts = link.call(timeout, move |wire| wire.all_gather(text.into_bytes()));
        let texts = link.wait(timeout, texts).context("while the ranks compared their configurations")?;
        let tables = texts.iter().map(|text| parse_table(text)).collect::<Result<Vec<Table>>>()?;
        for (rank, theirs) in tables.iter().enumerate() {
            let differences = differences("", &Value::Table(tables[0].clone()), &Value::Table(theirs.clone()));
            ensure!(
                differences.is_empty(),
                "rank {rank} was started otherwise than rank 0: {}",
                differences.join("; ")
            );
        }
        Ok(())
    }

    /// What this rank could do alone, once all could: an error of one rank is an error of all, and none waits for the one that left.
    ///
    /// # Errors
    /// The first rank's that has one; a rank that does not come.
    pub fn together<T>(&self, result: Result<T>) -> Result<T> {
        let Some(link) = &self.link else { return result };
        let said = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let said = link.call(self.timeout, move |wire| wire.all_gather(said.into_bytes()));
        let said = link.wait(self.timeout, said).context("while the ranks opened the run")?;
        let value = result?;
        match said.iter().position(|said| !said.is_empty()) {
            Some(rank) => bail!("rank {rank} of {}: {}", link.world, String::from_utf8_lossy(&said[rank])),
            None => Ok(value),
        }
    }

    /// Divides a run: sequences and experts get their rank, gradients their buckets, and `lm` its way to the other ranks.
    pub fn divide(&mut self, config: &RunConfig, lm: &mut CodeLm, language_probs: &[f64], gradients: &Gradients) {
        let Some(link) = &self.link else { return };
        let layout = Layout::new(config, lm, language_probs, link.rank, link.world);
        let bucket_bytes = (config.parallel.bucket_mib * f64::from(1 << 20)) as usize;
        let sums = Sums::plan(gradients, |idx| layout.is_shared(idx), bucket_bytes.max(1));
        // Loads of the whole batch are in the losses of a router that reads the tokens.
        let talks = match config.parallel.mode {
            Mode::Expert => true,
            Mode::Data => config.model.moe.as_ref().is_some_and(MoeConfig::reads_tokens),
            Mode::Single | Mode::LanguageOwned => false,
        };
        let owner_of_expert = layout.owner_of_expert.clone().filter(|_| config.parallel.mode == Mode::Expert);
        let exchange = talks.then(|| Arc::new(Exchange::new(link.clone(), self.timeout, owner_of_expert)));
        self.division = Some(Division { layout, sums, exchange });
        self.connect(lm);
    }

    /// Lets the layers of experts talk to the other ranks; all ranks then run the model the same number of times.
    pub fn connect(&self, lm: &mut CodeLm) {
        let exchange = self.division.as_ref().and_then(|division| division.exchange.clone());
        lm.set_exchange(exchange.map(|exchange| exchange as _));
    }

    /// What falls to this rank; `None` where there is but one.
    pub fn layout(&self) -> Option<&Layout> {
        self.division.as_ref().map(|division| &division.layout)
    }

    /// This rank's part of a micro-step.
    pub fn deal(&self, sequences: &[Sequence]) -> Vec<Sequence> {
        self.layout().map_or_else(|| sequences.to_vec(), |layout| layout.deal(sequences))
    }

    /// Whether a rank without sequences must run the model all the same, on padding, and says whether that is so now.
    pub fn must_take_part(&self, idle: bool) -> bool {
        let exchange = self.division.as_ref().and_then(|division| division.exchange.as_ref());
        exchange.is_some_and(|exchange| {
            exchange.set_idle(idle);
            true
        })
    }

    /// Starts to sum the gradients that lie at `from` or after in [`Gradients::values`]: they are final. Called from the end of the
    /// model to its start, as a backward pass finishes them; returns at once.
    pub fn start_sum(&mut self, gradients: &Gradients, from: usize) {
        if let (Some(link), Some(division)) = (&self.link, &mut self.division) {
            division.sums.start(gradients, from, link, self.timeout);
        }
    }

    /// Replaces the gradients of all shared parameters by their sums over all ranks. Sums that were not started start now.
    ///
    /// # Errors
    /// A rank that does not answer.
    pub fn finish_sum(&mut self, gradients: &mut Gradients) -> Result<()> {
        match (&self.link, &mut self.division) {
            (Some(link), Some(division)) => division.sums.finish(gradients, link, self.timeout),
            _ => Ok(()),
        }
    }

    /// Squares of the summed gradients: of the parameters that all ranks have, and of those that this rank alone has.
    pub fn squares(&self, gradients: &Gradients) -> (f64, f64) {
        let Some(layout) = self.layout() else { return (gradients.sum_of_squares(0..gradients.values().len()), 0.0) };
        let sum = |is_wanted: &dyn Fn(usize) -> bool| -> f64 {
            stretches(gradients, is_wanted).into_iter().map(|span| gradients.sum_of_squares(span)).sum()
        };
        (sum(&|idx| layout.is_shared(idx)), sum(&|idx| layout.is_mine(idx)))
    }

    /// The values of every rank, by rank.
    ///
    /// # Errors
    /// A rank that does not answer.
    pub fn gather(&self, values: &[f64]) -> Result<Vec<Vec<f64>>> {
        let Some(link) = &self.link else { return Ok(vec![values.to_vec()]) };
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let gathered = link.call(self.timeout, move |wire| wire.all_gather(bytes));
        let values =
            |bytes: &Vec<u8>| bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        Ok(link.wait(self.timeout, gathered)?.iter().map(values).collect())
    }

    /// Each value's sum over all ranks, added in their order.
    ///
    /// # Errors
    /// A rank that does not answer, or that has another number of values.
    pub fn sum(&self, values: &[f64]) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; values.len()];
        for (rank, values) in self.gather(values)?.iter().enumerate() {
            let (got, expected) = (values.len(), sums.len());
            ensure!(got == expected, "rank {rank} has {got} values to sum, rank {} has {expected}", self.rank());
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(sums)
    }

    /// Sends `parts[rank]` to each rank; returns what each sent here.
    ///
    /// # Errors
    /// A rank that does not answer.
    pub fn all_to_all_v(&self, parts: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let Some(link) = &self.link else { return Ok(parts) };
        let sent = link.call(self.timeout, move |wire| wire.all_to_all_v(parts));
        link.wait(self.timeout, sent)
    }

    /// What was sent, and the seconds waited for it, since the last call.
    pub fn take_traffic(&mut self) -> (Traffic, f64) {
        let Some(link) = &self.link else { return Default::default() };
        let (now, (before, waited_before)) = (link.counters(), self.reported);
        self.reported = now;
        let (traffic, waited_s) = now;
        let since = Traffic { bytes: traffic.bytes - before.bytes, messages: traffic.messages - before.messages };
        (since, waited_s - waited_before)
    }

    /// Ends the run together with all other ranks; without it the launcher takes this rank for failed.
    ///
    /// # Errors
    /// A rank that does not come.
    pub fn leave(self) -> Result<()> {
        self.link.as_ref().map_or(Ok(()), |link| link.leave(self.timeout))
    }
}

#[cfg(feature = "mpi")]
fn connect_mpi(config: &ParallelConfig) -> Result<Link> {
    Link::start(Mesh::seconds(config.join_timeout_s), super::mpi::Mpi::connect)
}

#[cfg(not(feature = "mpi"))]
fn connect_mpi(_config: &ParallelConfig) -> Result<Link> {
    anyhow::bail!(
        "parallel.backend = \"mpi\": this program was built without the feature `mpi`; build it with --features mpi"
    )
}

#[cfg(feature = "nccl")]
fn connect_nccl(config: &ParallelConfig) -> Result<Link> {
    let timeout = Mesh::seconds(config.join_timeout_s);
    Link::start(timeout, move || super::nccl::Nccl::connect(Launch::from_environment(), timeout))
}

#[cfg(not(feature = "nccl"))]
fn connect_nccl(_config: &ParallelConfig) -> Result<Link> {
    anyhow::bail!(
        "parallel.backend = \"nccl\": this program was built without the feature `nccl`; build it with --features nccl"
    )
}

fn parse_table(text: &[u8]) -> Result<Table> {
    let text = std::str::from_utf8(text).context("the configuration of another rank is no text")?;
    text.parse::<Table>().context("the configuration of another rank is no TOML")
}

/// Where `theirs` is not `first`, as `path = theirs, on rank 0 first`.
fn differences(path: &str, first: &Value, theirs: &Value) -> Vec<String> {
    let (Value::Table(a), Value::Table(b)) = (first, theirs) else {
        let differs = (first != theirs).then(|| format!("{path} = {theirs}, on rank 0 {first}"));
        return differs.into_iter().collect();
    };
    let mut found = Vec::new();
    for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (a.get(key), b.get(key)) {
            (Some(a), Some(b)) => found.extend(differences(&path, a, b)),
            (Some(_), None) => found.push(format!("{path} is missing")),
            _ => found.push(format!("{path} is on rank 0 not there")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of two ranks with these tables says of them.
    fn agreement(texts: [&str; 2]) -> Vec<Option<String>> {
        let meshes = Mesh::threads(2, &ParallelConfig::default()).unwrap();
        std::thread::scope(|scope| {
            let agree =
                |(mut mesh, text): (Mesh, &str)| mesh.agree(&text.parse().unwrap()).err().map(|e| e.to_string());
            let ranks: Vec<_> =
                meshes.into_iter().zip(texts).map(|rank| scope.spawn(move || agree((rank.0, rank.1)))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn unequal_configurations_are_named_on_every_rank() {
        assert_eq!(agreement(["a = 1", "a = 1"]), [None, None]);
        let said = agreement(["seed = 1\n[schedule]\nlr = 0.1", "seed = 1\n[schedule]\nlr = 0.2\nx = 1"]);
        let expected = "rank 1 was started otherwise than rank 0: schedule.lr = 0.2, on rank 0 0.1; schedule.x is on rank 0 not there";
        assert_eq!(said, [Some(expected.to_owned()), Some(expected.to_owned())]);
    }

    #[test]
    fn alone_every_sum_is_the_value_itself() {
        let mut mesh = Mesh::single();
        assert_eq!((mesh.rank(), mesh.world(), mesh.sum(&[2.0, 3.0]).unwrap()), (0, 1, vec![2.0, 3.0]));
        assert_eq!(mesh.all_to_all_v(vec![vec![1.0]]).unwrap(), [[1.0]]);
        assert_eq!(mesh.take_traffic(), Default::default());
        mesh.leave().unwrap();
    }
}
