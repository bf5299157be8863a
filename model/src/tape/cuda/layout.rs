//! Where everything lies: parameters in flat buffers, activations in one arena.

use std::ops::Range;

use super::super::op::{BufId, Op};
use super::super::{StepData, Tape};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gradients::Gradients;

/// Parameters begin at multiples of this many elements: tables of starts count in it, and tensor cores need 16 bytes.
pub(super) const ALIGN: usize = 64;

/// Parameters in flat buffers, in the order of [`crate::Gradients`]; its spans, but for the padding between them, which is always zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    starts: Vec<usize>,
    sizes: Vec<usize>,
    /// Elements of a flat buffer.
    pub(super) len: usize,
}

impl Layout {
    pub(super) fn new(sizes: impl IntoIterator<Item = usize>) -> Layout {
        let sizes: Vec<usize> = sizes.into_iter().collect();
        let mut len = 0;
        let starts = sizes.iter().map(|size| {
            let start = len;
            len += size.next_multiple_of(ALIGN);
            start
        });
        let starts = starts.collect();
        Layout { starts, sizes, len }
    }

    pub(super) fn n_parameters(&self) -> usize {
        self.sizes.len()
    }

    /// Whether gradients of the host are those of these parameters.
    pub(super) fn check(&self, gradients: &Gradients) -> Result<()> {
        let (got, expected) = (gradients.n_parameters(), self.n_parameters());
        match got == expected && (0..got).all(|idx| gradients.span(idx).len() == self.sizes[idx]) {
            true => Ok(()),
            false => {
                Err(Error::Input(format!("gradients of {got} parameters, expected {expected} of the model's sizes")))
            }
        }
    }

    /// Values of all parameters, without padding.
    pub(super) fn n_values(&self) -> usize {
        self.sizes.iter().sum()
    }

    pub(super) fn span(&self, idx: usize) -> Range<usize> {
        self.starts[idx]..self.starts[idx] + self.sizes[idx]
    }

    /// The start of a parameter in units of [`ALIGN`].
    pub(super) fn unit(&self, idx: usize) -> u32 {
        (self.starts[idx] / ALIGN) as u32
    }

    /// Values by parameter, one after the other, with the padding between them.
    pub(super) fn padded<'a>(&self, values: impl IntoIterator<Item = &'a [f32]>) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        for (idx, values) in values.into_iter().enumerate() {
            flat[self.span(idx)].copy_from_slice(values);
        }
        flat
    }

    /// Values without padding, as [`crate::Gradients::values`] has them.
    pub(super) fn dense(&self, flat: &[f32]) -> Vec<f32> {
        (0..self.n_parameters()).flat_map(|idx| flat[self.span(idx)].iter().copied()).collect()
    }

    /// Dense values with padding between them.
    pub(super) fn pad_dense(&self, dense: &[f32]) -> Vec<f32> {
        let mut rest = dense;
        self.padded(self.sizes.iter().map(|&size| {
            let (values, later) = rest.split_at(size);
            rest = later;
            values
        }))
    }
}

/// The arena of a tape's buffers, by their numbers.
///
/// Activations and their gradients are bfloat16. Float32 are the residual stream and its gradient (they are sums over all layers), what
/// norms and attention keep of each row, and nothing else. The gradient of the residual stream has a bfloat16 copy behind it, for the
/// products that read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arena {
    places: Vec<Place>,
    pub(super) n_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) is_float: bool,
    /// Where the bfloat16 numbers are: those of the buffer itself, or of its copy.
    pub(super) half_offset: Option<usize>,
}

impl Arena {
    pub(super) fn new(tape: &Tape) -> Arena {
        let (mut is_float, mut has_copy) = (vec![false; tape.buffers.len()], vec![false; tape.buffers.len()]);
        for op in &tape.ops {
            floats(op).into_iter().for_each(|id| is_float[id.0] = true);
            if let Op::NormGrad { dsum, .. } = op {
                has_copy[dsum.0] = true;
            }
        }
        // Bytes of a buffer, and with its copy.
        let n_bytes = |i: usize| {
            let len = tape.buffers[i].len();
            let own = (if is_float[i] { 4 * len } else { 2 * len }).next_multiple_of(256);
            (own, if has_copy[i] { own + (2 * len).next_multiple_of(256) } else { own })
        };
        let placed = || tape.buffers.iter().enumerate().filter(|(_, buffer)| buffer.slot < tape.slot_len.len());
        let mut slots = vec![0usize; tape.slot_len.len()];
        placed().for_each(|(i, buffer)| slots[buffer.slot] = slots[buffer.slot].max(n_bytes(i).1));
        let mut starts = vec![0];
        slots.iter().for_each(|n_bytes| starts.push(starts[starts.len() - 1] + n_bytes));
        let mut places = vec![Place::default(); tape.buffers.len()];
        for (i, buffer) in placed() {
            let offset = starts[buffer.slot];
            let half_offset = match (is_float[i], has_copy[i]) {
                (false, _) => Some(offset),
                (true, true) => Some(offset + n_bytes(i).0),
                (true, false) => None,
            };
            places[i] = Place { offset, is_float: is_float[i], half_offset };
        }
        Arena { places, n_bytes: starts[slots.len()] }
    }

    pub(super) fn place(&self, id: BufId) -> Place {
        self.places[id.0]
    }
}

/// The buffers of an operation that hold float32.
fn floats(op: &Op) -> Vec<BufId> {
    match *op {
        Op::Embed { out, .. } => vec![out],
        Op::Norm { x, add, inverse, .. } => {
            [Some(x), add.map(|(_, sum)| sum), Some(inverse)].into_iter().flatten().collect()
        }
        Op::NormGrad { sum, inverse, dsum, .. } => vec![sum, inverse, dsum],
        Op::HeadNormRope { inverse, .. } | Op::HeadNormRopeGrad { inverse, .. } => vec![inverse],
        Op::Attention { log_sum, .. } | Op::AttentionGrad { log_sum, .. } => vec![log_sum],
        _ => Vec::new(),
    }
}

/// Checks that the kernels take the sizes of a model.
///
/// # Errors
/// [`Error::Device`] with the first size that they do not.
pub(super) fn check_sizes(config: &ModelConfig) -> Result<()> {
    let moe = config.moe.as_ref();
    let widths = [
        ("d_model", config.d_model),
        ("d_ff", config.d_ff),
        ("moe.d_ff_expert", moe.map_or(8, |moe| moe.d_ff_expert)),
        ("moe.d_ff_shared", moe.map_or(8, |moe| moe.d_ff_shared)),
    ];
    if let Some((name, width)) = widths.into_iter().find(|(_, width)| width % 8 != 0) {
        return Err(Error::Device(format!("{name} = {width}: expected a multiple of 8 on a GPU")));
    }
    if config.d_model > 8192 {
        return Err(Error::Device(format!("d_model = {}: expected at most 8192 on a GPU", config.d_model)));
    }
    match super::kernels::HEADS.contains(&config.d_head) {
        true => Ok(()),
        false => Err(Error::Device(format!("d_head = {}: expected 32, 64 or 128 on a GPU", config.d_head))),
    }
}

/// The parameters whose gradients a tape adds to.
pub(super) fn present(tape: &Tape, data: &StepData, n_parameters: usize) -> Vec<bool> {
    let mut present = vec![false; n_parameters];
    for op in &tape.ops {
        let (one, two) = match *op {
            Op::EmbedGrad { table, bigrams, .. } => (Some(table), bigrams),
            Op::NormGrad { weight, .. } | Op::HeadNormRopeGrad { weight, .. } => (Some(weight), None),
            Op::LinearGradWeight { weight, bias, .. } => (Some(weight), bias),
            Op::AddRowsGrad { table, .. } => (Some(table), None),
            Op::LinearCrossEntropy { head, .. } => (Some(head), None),
            Op::ExpertLinearGradWeight { ref weights, moe, .. } => {
                data.plans[moe].runs.iter().for_each(|&(expert, _)| present[weights[expert].0] = true);
                (None, None)
            }
            _ => (None, None),
        };
        [one, two].into_iter().flatten().for_each(|id| present[id.0] = true);
    }
    present
}
