//! A batch in, its loss and gradients out: by the tape, or by autograd where tokens travel to other ranks.

use std::ops::Range;

use super::cpu::{Inputs, attention_shape};
use super::made;
use super::meeting::Meeting;
use super::record::record;
use super::shards::Shards;
use super::step_data::HostPlan;
use super::{CpuTape, DeviceOptimizer, DeviceTape, Profile, StepData, TapeOptions};
use crate::config::MoeConfig;
use crate::draw::Draw;
use crate::error::Result;
use crate::exchange::ExpertExchange;
use crate::gradients::Gradients;
use crate::lm::{Batch, CodeLm, IGNORE_ID, LossOutput, row_sums};
use crate::router::{Router, RouterContext};

/// What a forward and backward pass says besides the gradients.
#[derive(Clone, Debug, Default)]
pub struct StepLoss {
    /// Sum over the counted tokens of -ln p(target), nats.
    pub nll_sum: f64,
    /// The routers' losses, weighted by the share of this batch in the step.
    pub aux_loss: f64,
    /// `nll_sum` of each row of the batch.
    pub nll_B: Vec<f64>,
    /// Counted tokens.
    pub n_tokens: usize,
    /// Per layer with experts, the share of assignments of each.
    pub load_E: Vec<Vec<f32>>,
}

impl StepLoss {
    /// Adds a part of the batch that holds `share` of its tokens.
    fn add(&mut self, part: &StepLoss, share: f32) {
        self.nll_sum += part.nll_sum;
        self.aux_loss += part.aux_loss;
        self.nll_B.extend(&part.nll_B);
        self.n_tokens += part.n_tokens;
        self.load_E.resize_with(part.load_E.len(), Vec::new);
        self.load_E.iter_mut().zip(&part.load_E).for_each(|(sum, load)| sum.resize(load.len(), 0.0));
        let loads = self.load_E.iter_mut().flatten().zip(part.load_E.iter().flatten());
        loads.for_each(|(sum, load)| *sum += load * share);
    }
}

/// Computes gradients step after step, in the same memory.
#[derive(Default)]
pub struct TrainTape {
    options: TapeOptions,
    shards: Shards,
    device: Option<Box<dyn DeviceTape>>,
}

/// Hears of parameters, a range of them, whose gradients are complete.
pub type Ready<'a> = dyn FnMut(&mut Gradients, Range<usize>) -> Result<()> + Send + 'a;

impl TrainTape {
    pub fn new(options: TapeOptions) -> TrainTape {
        TrainTape { options, shards: Shards::default(), device: None }
    }

    /// A tape that runs on the GPU of that number, with weights and optimizer of its own there: [`TrainTape::device`] updates them and gives them
    /// back.
    ///
    /// # Errors
    /// [`crate::Error::Device`] without a GPU, its driver or its libraries, or in a build without the feature `cuda`.
    pub fn on_gpu(ordinal: usize, lm: &CodeLm, options: TapeOptions, optimizer: &DeviceOptimizer) -> Result<TrainTape> {
        Ok(TrainTape { device: Some(gpu_tape(ordinal, lm, options, optimizer)?), ..TrainTape::new(options) })
    }

    /// A tape that runs on a device that is there.
    pub fn on(device: Box<dyn DeviceTape>) -> TrainTape {
        TrainTape { device: Some(device), ..TrainTape::default() }
    }

    /// The device that steps run on, unless it is the CPU.
    pub fn device(&mut self) -> Option<&mut dyn DeviceTape> {
        self.device.as_mut().map(|device| &mut **device as &mut dyn DeviceTape)
    }

    /// Whether the tape runs this model: one on the CPU whose tokens stay here. Others run by autograd.
    pub fn is_for(lm: &CodeLm) -> bool {
        let travels = lm.exchange().is_some_and(|exchange| exchange.owner_of_expert().is_some());
        lm.device().is_cpu() && !travels
    }

    /// Whether a tape on a GPU runs it, too: one whose plans are made before the step, with as many experts in each layer, and whose
    /// weights are parameters.
    pub fn is_for_gpu(lm: &CodeLm) -> bool {
        let config = lm.config();
        let is_simple = |moe: &MoeConfig| {
            let is_plain = moe.expert_param.is_plain() && moe.dropout == 0.0;
            is_plain && !moe.reads_tokens() && moe.experts_by_layer.is_empty()
        };
        let has_extras = config.adapter.is_some() || config.language_embedding;
        TrainTape::is_for(lm) && !has_extras && config.moe.as_ref().is_none_or(is_simple)
    }

    /// Adds the gradient of [`CodeLm::loss_of_share`] to `gradients`. `ready` hears of all parameters, from the last to the first,
    /// during the backward pass.
    ///
    /// On a device it adds to the gradients there instead, and neither `gradients` nor `ready` is used; the loss comes with the update.
    ///
    /// # Errors
    /// Ids, languages or document starts that do not fit the model; whatever `ready` fails with.
    pub fn step(
        &mut self,
        lm: &CodeLm,
        batch: &Batch,
        (divisor, share): (f64, f64),
        gradients: &mut Gradients,
        ready: Option<&mut Ready>,
    ) -> Result<StepLoss> {
        if let Some(device) = &mut self.device {
            return device.step(lm, batch, divisor);
        }
        if !TrainTape::is_for(lm) {
            return by_autograd(lm, batch, (divisor, share), gradients, ready.unwrap_or(&mut |_, _| Ok(())));
        }
        if !lm.config().moe.as_ref().is_none_or(|moe| moe.expert_param.is_plain()) {
            return made::step(self, lm, batch, (divisor, share), gradients, ready);
        }
        let (b, l) = batch.x_BL.dims2()?;
        lm.check_batch(b, l, batch.language_BL.len())?;
        if let Some(start_BL) = &batch.start_BL {
            attention_shape(lm.config(), b, l).check_starts(start_BL)?;
        }
        let scale = (1.0 / divisor) as f32;
        let is_local = lm.config().moe.as_ref().is_none_or(MoeConfig::is_local);
        let n_parts = self.shards.n_parts(batch, is_local, gradients)?;
        let part = Part { lm, options: self.options, scale, share: share / n_parts as f64 };
        let exchange = lm.exchange().map(|exchange| &**exchange);
        if let Some(cpu) = self.shards.undivided(n_parts) {
            return part.run(batch, exchange, cpu, gradients, ready.unwrap_or(&mut |_, _| Ok(())));
        }
        let meeting = Meeting::new(n_parts, exchange);
        let run = |cpu: &mut CpuTape, batch: &Batch, gradients: &mut Gradients, ready: &mut Ready| {
            part.run(batch, Some(&meeting.seat()), cpu, gradients, ready)
        };
        let parts = self.shards.run(batch, n_parts, gradients, run, ready)?;
        let mut loss = StepLoss::default();
        let share = 1.0 / parts.len() as f32;
        parts.iter().for_each(|part| loss.add(part, share));
        Ok(loss)
    }

    /// Where the time of the tape's operations went.
    pub fn profile(&mut self) -> Option<&mut Profile> {
        match &mut self.device {
            Some(device) => Some(device.profile()),
            None => self.shards.profile(),
        }
    }

    /// Bytes of activations and their gradients.
    pub fn n_bytes(&self) -> usize {
        self.device.as_ref().map_or_else(|| self.shards.n_bytes(), |device| device.n_bytes())
    }
}

/// The number of GPUs for [`TrainTape::on_gpu`], with their driver and libraries: at least one.
///
/// # Errors
/// [`crate::Error::Device`] with what is missing, or in a build without the feature `cuda`.
pub fn n_gpus() -> Result<usize> {
    #[cfg(feature = "cuda")]
    return super::cuda::n_gpus();
    #[cfg(not(feature = "cuda"))]
    return Err(no_gpu_code());
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn no_gpu_code() -> crate::Error {
    crate::Error::Device("this build has no GPU code: build with --features cuda".to_owned())
}

#[cfg(feature = "cuda")]
fn gpu_tape(
    ordinal: usize,
    lm: &CodeLm,
    options: TapeOptions,
    optimizer: &DeviceOptimizer,
) -> Result<Box<dyn DeviceTape>> {
    Ok(Box::new(super::CudaTape::new(ordinal, lm, options, optimizer)?))
}

#[cfg(not(feature = "cuda"))]
fn gpu_tape(_: usize, _: &CodeLm, _: TapeOptions, _: &DeviceOptimizer) -> Result<Box<dyn DeviceTape>> {
    Err(no_gpu_code())
}

/// What the parts of a batch have in common.
struct Part<'a> {
    lm: &'a CodeLm,
    options: TapeOptions,
    scale: f32,
    /// Of one part, in the means of the step.
    share: f64,
}

impl Part<'_> {
    /// Runs one part; `exchange` knows of the others.
    fn run(
        &self,
        batch: &Batch,
        exchange: Option<&dyn ExpertExchange>,
        cpu: &mut CpuTape,
        gradients: &mut Gradients,
        ready: &mut Ready,
    ) -> Result<StepLoss> {
        let lm = self.lm;
        let data = step_data(lm, batch, exchange)?;
        let names: Vec<&str> = lm.parameters().iter().map(|(name, _)| name.as_str()).collect();
        let tape = record(lm.config(), &names, &data, self.options)?;
        let routers: Vec<&dyn Router> = lm.routers().collect();
        let draw = batch.draw(&data.id_N, data.l);
        let inputs = Inputs {
            config: lm.config(),
            rope: lm.rope(),
            parameters: lm.parameters(),
            data: &data,
            scale: self.scale,
            share: self.share,
            routers: &routers,
            adapters: lm.adapters(),
            context: RouterContext {
                id_N: &data.id_N,
                language_N: &batch.language_BL,
                exchange,
                ..RouterContext::default()
            },
            draw: draw.as_ref(),
        };
        let nll_sum = cpu.run(&tape, &inputs, gradients, ready)?;
        let n_tokens = data.target_N.iter().filter(|&&id| id != IGNORE_ID).count();
        let (aux_loss, load_E) = cpu.routing(&data)?;
        let nll_B = row_sums(cpu.nll_N(), data.l);
        Ok(StepLoss { nll_sum, aux_loss: aux_loss * self.share, nll_B, n_tokens, load_E })
    }
}

/// Everything that the tape needs to know of the batch.
pub(super) fn step_data(lm: &CodeLm, batch: &Batch, exchange: Option<&dyn ExpertExchange>) -> Result<StepData> {
    let mut data = StepData::new(lm.config(), batch)?;
    let draw = batch.draw(&data.id_N, data.l);
    data.plans = host_plans(lm, (&data.id_N, &batch.language_BL), draw.as_ref(), exchange)?;
    Ok(data)
}

/// The plan of each layer with experts: the largest one where its router reads what only the step computes.
pub(super) fn host_plans(
    lm: &CodeLm,
    (id_N, language_N): (&[u32], &[u32]),
    draw: Option<&Draw>,
    exchange: Option<&dyn ExpertExchange>,
) -> Result<Vec<HostPlan>> {
    let (n, mut plans) = (id_N.len(), Vec::new());
    let x_N0 = candle_core::Tensor::zeros((n, 0), candle_core::DType::F32, lm.device())?;
    for (i, (router, moe)) in lm.routers().zip(lm.config().moe_layers()).enumerate() {
        if moe.reads_tokens() {
            plans.push(HostPlan::largest(&moe, language_N));
            continue;
        }
        let draw = draw.map(|draw| draw.layer(i));
        let context = RouterContext { id_N, language_N, draw, exchange, allowed_E: None };
        let (mut plan, aux) = router.plan(&x_N0, &context)?;
        if exchange.is_some_and(|exchange| exchange.is_idle()) {
            plan.drop_assignments();
        }
        plans.push(HostPlan::new(&plan, &aux, n, moe.n_experts)?);
    }
    Ok(plans)
}

fn by_autograd(
    lm: &CodeLm,
    batch: &Batch,
    (divisor, share): (f64, f64),
    gradients: &mut Gradients,
    ready: &mut Ready,
) -> Result<StepLoss> {
    let output = lm.loss_of_share(batch, divisor, share)?;
    let mut grads = output.loss.backward()?;
    for (idx, (_, parameter)) in lm.parameters().iter().enumerate().rev() {
        if let Some(gradient) = grads.remove(parameter) {
            gradients.add(idx, &gradient)?;
        }
        ready(gradients, idx..idx + 1)?;
    }
    let LossOutput { nll_sum, aux_loss, nll_B, n_tokens, load_E, .. } = output;
    Ok(StepLoss { nll_sum, aux_loss, nll_B, n_tokens, load_E })
}
