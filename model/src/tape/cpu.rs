//! Runs a tape on the CPU, in memory that it keeps.

use std::ops::{Deref, Range};
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Storage, Var};

use super::op::{BufId, Buffer, Op, ParamId};
use super::profile::Profile;
use super::step_data::HostPlan;
use super::{StepData, Tape};
use crate::adapters::Adapters;
use crate::config::ModelConfig;
use crate::draw::Draw;
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::ops::{CrossEntropyMemory, Rope};
use crate::router::{Router, RouterContext};

mod adapted;
mod kernels;
mod routed;

use adapted::Adapted;
pub(super) use kernels::attention_shape;
use routed::{Outputs, Routed};

/// What a run reads besides its buffers.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) rope: &'a Rope,
    pub(crate) parameters: &'a [(String, Var)],
    pub(crate) data: &'a StepData,
    /// What the summed loss is multiplied by before its gradient is taken.
    pub(crate) scale: f32,
    /// What the routers' losses, which are means over tokens, are multiplied by.
    pub(crate) share: f64,
    /// The routers of the layers with experts, and what they may look at besides the tokens.
    pub(crate) routers: &'a [&'a dyn Router],
    pub(crate) adapters: Option<&'a dyn Adapters>,
    pub(crate) context: RouterContext<'a>,
    pub(crate) draw: Option<&'a Draw>,
}

/// The memory of tapes on the CPU: made by the first run, kept for the next ones.
#[derive(Default)]
pub struct CpuTape {
    slots: Vec<Vec<f32>>,
    loss: CrossEntropyMemory,
    /// By layer with experts, what its router made of the tokens in the last run; none where plans were there before.
    routed: Vec<Option<Routed>>,
    /// By layer, what its adapters made of the tokens in the last run.
    adapted: Vec<Option<Adapted>>,
    /// Where the time went.
    pub profile: Profile,
}

impl CpuTape {
    /// Runs all operations; adds to `gradients` and returns the summed loss in nats. `ready` hears, during the backward pass, of
    /// parameters whose gradients are complete.
    ///
    /// # Errors
    /// Parameters that are not contiguous float32 tensors on the CPU; whatever `ready` fails with.
    pub(crate) fn run(
        &mut self,
        tape: &Tape,
        inputs: &Inputs,
        gradients: &mut Gradients,
        ready: &mut dyn FnMut(&mut Gradients, Range<usize>) -> Result<()>,
    ) -> Result<f64> {
        self.slots.resize_with(self.slots.len().max(tape.slot_len.len()), Vec::new);
        for (slot, &len) in self.slots.iter_mut().zip(&tape.slot_len) {
            slot.resize(slot.len().max(len), 0.0);
        }
        self.routed = inputs.routers.iter().map(|_| None).collect();
        self.adapted = (0..inputs.config.n_layers).map(|_| None).collect();
        let weights = Weights::read(inputs.parameters)?;
        let mut nll_sum = 0.0;
        for op in &tape.ops {
            let start = Instant::now();
            let plans = Plans { made_before: &inputs.data.plans, routed: &self.routed };
            let mut memory = Memory { buffers: &tape.buffers, slots: &mut self.slots, plans };
            match op {
                Op::Route { x, moe } => {
                    let routed = Routed::new(inputs, *moe, memory.get(*x), memory.shape(*x).1)?;
                    self.routed[*moe] = Some(routed);
                }
                Op::RouteGrad { dout, y, shared, moe, dx } => memory.write([*dx], |memory, [dx]| {
                    let Some(routed) = &self.routed[*moe] else { return Ok(()) };
                    let shared = shared.map(|shared| memory.get(shared));
                    let outputs = Outputs { dout: memory.get(*dout), y: memory.get(*y), shared };
                    routed.backward(inputs, &outputs, gradients, dx)
                })?,
                Op::Adapt { x, add, layer, out } => {
                    let adapted = &mut self.adapted[*layer];
                    memory.write([*out], |memory, [out]| {
                        *adapted = Some(Adapted::new(inputs, *layer, [memory.get(*x), memory.get(*add)], out)?);
                        Ok::<(), Error>(())
                    })?;
                }
                Op::AdaptGrad { layer, dx } => memory.write([*dx], |_, [dx]| {
                    self.adapted[*layer].take().map_or(Ok(()), |adapted| adapted.backward(inputs, gradients, dx))
                })?,
                Op::Ready { parameters } => ready(gradients, parameters.clone())?,
                Op::LinearCrossEntropy { x, head, dx } => {
                    let run = (&weights, inputs, &mut *gradients);
                    nll_sum += kernels::cross_entropy(&mut memory, run, (*x, *head, *dx), &mut self.loss);
                }
                op => kernels::run(op, &mut memory, &weights, inputs, gradients),
            }
            self.profile.add(op.name(), start.elapsed());
        }
        Ok(nll_sum)
    }

    /// Of the last run: -ln p(target) of each token in nats, 0 where it is not counted.
    pub(crate) fn nll_N(&self) -> &[f32] {
        &self.loss.nll_N
    }

    /// Of the last run: the routers' losses, and the loads of the experts of each layer that has some.
    pub(crate) fn routing(&self, data: &StepData) -> Result<(f64, Vec<Vec<f32>>)> {
        let aux_loss = self.routed.iter().flatten().map(Routed::aux_loss).sum::<Result<f64>>()?;
        let plans = Plans { made_before: &data.plans, routed: &self.routed };
        Ok((aux_loss, (0..data.plans.len()).map(|moe| plans.get(moe).load_E.clone()).collect()))
    }

    /// Bytes that it holds.
    pub fn n_bytes(&self) -> usize {
        4 * (self.slots.iter().map(Vec::len).sum::<usize>() + self.loss.n_elements())
    }
}

/// Adds to `gradients` what autograd found for parameters.
pub(super) fn add_found(mut found: GradStore, parameters: &[(String, Var)], gradients: &mut Gradients) -> Result<()> {
    for (idx, (_, parameter)) in parameters.iter().enumerate() {
        if let Some(gradient) = found.remove(parameter) {
            gradients.add(idx, &gradient)?;
        }
    }
    Ok(())
}

/// The buffers of a tape in their slots.
struct Memory<'a> {
    buffers: &'a [Buffer],
    slots: &'a mut Vec<Vec<f32>>,
    plans: Plans<'a>,
}

/// The plan of each layer with experts: made before the step, or by its router from the tokens.
#[derive(Clone, Copy)]
struct Plans<'a> {
    made_before: &'a [HostPlan],
    routed: &'a [Option<Routed>],
}

impl<'a> Plans<'a> {
    fn get(self, moe: usize) -> &'a HostPlan {
        self.routed[moe].as_ref().map_or(&self.made_before[moe], |routed| &routed.plan)
    }
}

impl Memory<'_> {
    fn shape(&self, id: BufId) -> (usize, usize) {
        let buffer = self.buffers[id.0];
        (buffer.rows, buffer.cols)
    }

    fn get(&self, id: BufId) -> &[f32] {
        let buffer = self.buffers[id.0];
        &self.slots[buffer.slot][..buffer.len()]
    }

    /// Runs `f` on buffers that it may write, beside all others that it may read.
    fn write<const N: usize, T>(&mut self, ids: [BufId; N], f: impl FnOnce(&Memory, [&mut [f32]; N]) -> T) -> T {
        let mut taken = ids.map(|id| std::mem::take(&mut self.slots[self.buffers[id.0].slot]));
        let buffers = self.buffers;
        let mut i = 0;
        let slices = taken.each_mut().map(|values| {
            let len = buffers[ids[i].0].len();
            i += 1;
            &mut values[..len]
        });
        let result = f(self, slices);
        ids.into_iter().zip(taken).for_each(|(id, values)| self.slots[self.buffers[id.0].slot] = values);
        result
    }
}

/// A parameter's storage, locked for reading, and where its values lie in it. candle does not name the lock's type.
type Guard<'a> = (Box<dyn Deref<Target = Storage> + 'a>, Range<usize>);

/// The values of all parameters, locked for reading.
struct Weights<'a> {
    guards: Vec<Guard<'a>>,
}

impl<'a> Weights<'a> {
    fn read(parameters: &'a [(String, Var)]) -> Result<Weights<'a>> {
        let guard = |(name, parameter): &'a (String, Var)| -> Result<Guard<'a>> {
            let (storage, layout) = parameter.as_tensor().storage_and_layout();
            let range = layout.contiguous_offsets().map(|(start, end)| start..end);
            match (&*storage, range) {
                (Storage::Cpu(cpu), Some(range)) if cpu.as_slice::<f32>().is_ok() => Ok((Box::new(storage), range)),
                _ => Err(Error::Input(format!("{name}: expected a contiguous float32 parameter on the CPU"))),
            }
        };
        Ok(Weights { guards: parameters.iter().map(guard).collect::<Result<_>>()? })
    }

    fn get(&self, id: ParamId) -> &[f32] {
        let (storage, range) = &self.guards[id.0];
        match &***storage {
            Storage::Cpu(cpu) => cpu.as_slice::<f32>().map_or(&[], |values| &values[range.clone()]),
            // `read` lets no other in.
            _ => &[],
        }
    }
}
