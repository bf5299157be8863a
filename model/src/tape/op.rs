//! The operations of a tape. Each is one kernel of an executor; shapes are those of its buffers.

use std::ops::Range;

/// A buffer of the tape, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufId(pub usize);

/// A parameter, by its index in [`crate::CodeLm::parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub usize);

/// A matrix of activations or of their gradients, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub rows: usize,
    pub cols: usize,
    /// Where it lives: an index of [`super::Tape::slot_len`].
    pub slot: usize,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One operation. `out` and names that begin with `d` (a gradient) are written; `accumulate` adds to what is there.
///
/// Gradients of parameters are always added to those of earlier operations and micro-steps.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Rows of `table` by id, plus rows of `bigrams` by bucket. Shape of `out`: `ND`.
    Embed {
        table: ParamId,
        bigrams: Option<ParamId>,
        out: BufId,
    },
    EmbedGrad {
        dout: BufId,
        table: ParamId,
        bigrams: Option<ParamId>,
    },
    /// `sum = x + add` (`sum` is `x` where nothing is added), `out = sum / rms(sum) * weight`, `inverse = 1 / rms(sum)` by row.
    Norm {
        x: BufId,
        add: Option<(BufId, BufId)>,
        weight: ParamId,
        out: BufId,
        inverse: BufId,
    },
    NormGrad {
        sum: BufId,
        inverse: BufId,
        weight: ParamId,
        dout: BufId,
        dsum: BufId,
        accumulate: bool,
    },
    /// `out = x · weightᵀ + bias`.
    Linear {
        x: BufId,
        weight: ParamId,
        bias: Option<ParamId>,
        out: BufId,
    },
    LinearGradInput {
        dout: BufId,
        weight: ParamId,
        dx: BufId,
        accumulate: bool,
    },
    LinearGradWeight {
        x: BufId,
        dout: BufId,
        weight: ParamId,
        bias: Option<ParamId>,
    },
    /// Adds rows of `table` by id to `x`, in place.
    AddRows {
        table: ParamId,
        x: BufId,
    },
    AddRowsGrad {
        dx: BufId,
        table: ParamId,
    },
    /// Adds rows of `table` by the token's language to `x`, in place; the last row is that of unknown languages.
    AddLanguages {
        table: ParamId,
        x: BufId,
    },
    AddLanguagesGrad {
        dx: BufId,
        table: ParamId,
    },
    /// `out = x + add`, and to that what the adapters of layer `layer` say. Shape: `ND`.
    Adapt {
        x: BufId,
        add: BufId,
        layer: usize,
        out: BufId,
    },
    /// Turns the gradient of `out` into that of `x + add`, in place.
    AdaptGrad {
        layer: usize,
        dx: BufId,
    },
    /// Rotates the heads of `x` by their positions, in place; backwards for the gradient.
    Rope {
        x: BufId,
        backwards: bool,
    },
    /// RMSNorm of each head by `weight`, then the rotation. `inverse` has a column for each head.
    HeadNormRope {
        x: BufId,
        weight: ParamId,
        out: BufId,
        inverse: BufId,
    },
    /// Writes the gradient of `x` over that of `out`.
    HeadNormRopeGrad {
        x: BufId,
        inverse: BufId,
        weight: ParamId,
        dout: BufId,
    },
    /// Causal attention within documents; `log_sum` is the logarithm of each row's and head's sum of exponentials.
    Attention {
        q: BufId,
        k: BufId,
        v: BufId,
        out: BufId,
        log_sum: BufId,
    },
    AttentionGrad {
        qkv: [BufId; 3],
        out: BufId,
        log_sum: BufId,
        dout: BufId,
        dqkv: [BufId; 3],
    },
    /// `relu(x)^2`.
    Relu2 {
        x: BufId,
        out: BufId,
    },
    /// Writes the gradient of `x` over that of `out`.
    Relu2Grad {
        x: BufId,
        dout: BufId,
    },
    /// `silu(gate) * up`.
    Swiglu {
        gate: BufId,
        up: BufId,
        out: BufId,
    },
    /// Writes the gradient of `up` over that of `out`.
    SwigluGrad {
        gate: BufId,
        up: BufId,
        dout: BufId,
        dgate: BufId,
    },
    /// The router of MoE layer `moe` makes its plan of the tokens. Shape of `x`: `ND`.
    Route {
        x: BufId,
        moe: usize,
    },
    /// The gradient of the weights in the plan, and of the router's losses, on to the router's parameters and `dx`. `y` is what the
    /// experts said (`AD`), `shared` what the shared one did (`ND`), where the plan weighs it.
    RouteGrad {
        dout: BufId,
        y: BufId,
        shared: Option<BufId>,
        moe: usize,
        dx: BufId,
    },
    /// The rows of `x` in the order of the plan of MoE layer `moe`. Shape: `ND` -> `AD`.
    Gather {
        x: BufId,
        moe: usize,
        out: BufId,
    },
    /// Adds each row of the gradient to that of its token. Shape: `AD` -> `ND`.
    GatherGrad {
        dout: BufId,
        moe: usize,
        dx: BufId,
        accumulate: bool,
    },
    /// As `Linear`, each stretch of rows with the weight of its expert.
    ExpertLinear {
        x: BufId,
        weights: Vec<ParamId>,
        moe: usize,
        out: BufId,
        accumulate: bool,
    },
    ExpertLinearGradInput {
        dout: BufId,
        weights: Vec<ParamId>,
        moe: usize,
        dx: BufId,
        accumulate: bool,
    },
    ExpertLinearGradWeight {
        x: BufId,
        dout: BufId,
        weights: Vec<ParamId>,
        moe: usize,
    },
    /// Multiplies hidden values of the experts of MoE layer `moe`, or their gradient, by 0 or what makes up for it. Shape: `AF`.
    DropHidden {
        x: BufId,
        moe: usize,
    },
    /// Adds each row of `x`, times its weight in the plan, to that of its token. Shape: `AD` -> `ND`.
    Combine {
        x: BufId,
        moe: usize,
        out: BufId,
        accumulate: bool,
    },
    /// The gradient of each assignment's row: that of its token times its weight. Shape: `ND` -> `AD`.
    CombineGrad {
        dout: BufId,
        moe: usize,
        dx: BufId,
    },
    /// Each row of `x` times the weight that the plan gives the shared expert there. Its own gradient, too.
    WeighShared {
        x: BufId,
        moe: usize,
        out: BufId,
    },
    /// Cross-entropy of `x · headᵀ` against the targets, in blocks of rows; `dx` and the gradient of `head` in the same pass.
    LinearCrossEntropy {
        x: BufId,
        head: ParamId,
        dx: BufId,
    },
    /// From here on nothing is added to the gradients of these parameters.
    Ready {
        parameters: Range<usize>,
    },
}

impl Op {
    /// A name for profiles.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } | Op::EmbedGrad { .. } => "embed",
            Op::Norm { .. } | Op::NormGrad { .. } => "norm",
            Op::Linear { .. } | Op::LinearGradInput { .. } | Op::LinearGradWeight { .. } => "linear",
            Op::AddRows { .. } | Op::AddRowsGrad { .. } => "value embedding",
            Op::AddLanguages { .. } | Op::AddLanguagesGrad { .. } => "language embedding",
            Op::Adapt { .. } | Op::AdaptGrad { .. } => "adapters",
            Op::Rope { .. } | Op::HeadNormRope { .. } | Op::HeadNormRopeGrad { .. } => "rope",
            Op::Attention { .. } => "attention",
            Op::AttentionGrad { .. } => "attention gradient",
            Op::Relu2 { .. } | Op::Relu2Grad { .. } | Op::Swiglu { .. } | Op::SwigluGrad { .. } => "activation",
            Op::Route { .. } | Op::RouteGrad { .. } => "router",
            Op::Gather { .. }
            | Op::GatherGrad { .. }
            | Op::DropHidden { .. }
            | Op::Combine { .. }
            | Op::CombineGrad { .. }
            | Op::WeighShared { .. } => "dispatch",
            Op::ExpertLinear { .. } | Op::ExpertLinearGradInput { .. } | Op::ExpertLinearGradWeight { .. } => "experts",
            Op::LinearCrossEntropy { .. } => "cross-entropy",
            Op::Ready { .. } => "ready",
        }
    }

    /// Whether all that the operation does is to write buffers: no gradient of a parameter, no loss.
    pub(super) fn only_writes_buffers(&self) -> bool {
        matches!(
            self,
            Op::Embed { .. }
                | Op::Norm { .. }
                | Op::Linear { .. }
                | Op::LinearGradInput { .. }
                | Op::AddRows { .. }
                | Op::AddLanguages { .. }
                | Op::Rope { .. }
                | Op::HeadNormRope { .. }
                | Op::Attention { .. }
                | Op::Relu2 { .. }
                | Op::Swiglu { .. }
                | Op::Gather { .. }
                | Op::ExpertLinear { .. }
                | Op::DropHidden { .. }
                | Op::Combine { .. }
                | Op::WeighShared { .. }
        )
    }

    /// The buffers that the operation touches: those that it reads, and those that it writes (some of them reading, too).
    pub fn buffers(&self) -> (Vec<BufId>, Vec<BufId>) {
        match *self {
            Op::Embed { out, .. } => (vec![], vec![out]),
            Op::EmbedGrad { dout, .. } => (vec![dout], vec![]),
            Op::Norm { x, add: Some((add, sum)), out, inverse, .. } => (vec![x, add], vec![sum, out, inverse]),
            Op::Norm { x, add: None, out, inverse, .. } => (vec![x], vec![out, inverse]),
            Op::NormGrad { sum, inverse, dout, dsum, .. } => (vec![sum, inverse, dout], vec![dsum]),
            Op::Linear { x, out, .. } | Op::ExpertLinear { x, out, .. } => (vec![x], vec![out]),
            Op::LinearGradInput { dout, dx, .. } | Op::ExpertLinearGradInput { dout, dx, .. } => (vec![dout], vec![dx]),
            Op::LinearGradWeight { x, dout, .. } | Op::ExpertLinearGradWeight { x, dout, .. } => {
                (vec![x, dout], vec![])
            }
            Op::AddRows { x, .. } | Op::AddLanguages { x, .. } | Op::Rope { x, .. } | Op::DropHidden { x, .. } => {
                (vec![], vec![x])
            }
            Op::AddRowsGrad { dx, .. } | Op::AddLanguagesGrad { dx, .. } => (vec![dx], vec![]),
            Op::Adapt { x, add, out, .. } => (vec![x, add], vec![out]),
            Op::AdaptGrad { dx, .. } => (vec![], vec![dx]),
            Op::HeadNormRope { x, out, inverse, .. } => (vec![x], vec![out, inverse]),
            Op::HeadNormRopeGrad { x, inverse, dout, .. } => (vec![x, inverse], vec![dout]),
            Op::Attention { q, k, v, out, log_sum } => (vec![q, k, v], vec![out, log_sum]),
            Op::AttentionGrad { qkv: [q, k, v], out, log_sum, dout, dqkv } => {
                (vec![q, k, v, out, log_sum, dout], dqkv.to_vec())
            }
            Op::Relu2 { x, out } => (vec![x], vec![out]),
            Op::Relu2Grad { x, dout } => (vec![x], vec![dout]),
            Op::Swiglu { gate, up, out } => (vec![gate, up], vec![out]),
            Op::SwigluGrad { gate, up, dout, dgate } => (vec![gate, up], vec![dout, dgate]),
            Op::Route { x, .. } => (vec![x], vec![]),
            Op::RouteGrad { dout, y, shared, dx, .. } => ([dout, y].into_iter().chain(shared).collect(), vec![dx]),
            Op::Gather { x, out, .. } | Op::Combine { x, out, .. } | Op::WeighShared { x, out, .. } => {
                (vec![x], vec![out])
            }
            Op::GatherGrad { dout, dx, .. } | Op::CombineGrad { dout, dx, .. } => (vec![dout], vec![dx]),
            Op::LinearCrossEntropy { x, dx, .. } => (vec![x], vec![dx]),
            Op::Ready { .. } => (vec![], vec![]),
        }
    }
}
