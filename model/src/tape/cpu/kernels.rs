//! Each operation of a tape on slices: shapes, then one call of `ops`.

use rayon::prelude::*;

use super::super::op::{BufId, Op, ParamId};
use super::{Inputs, Memory, Weights};
use crate::config::ModelConfig;
use crate::draw::DROPOUT;
use crate::gradients::Gradients;
use crate::ops::{self, AttentionShape, CrossEntropyMemory, HeadNormRope};

/// Runs one operation; those of the loss and of the control of the tape are not its own.
pub(super) fn run(op: &Op, memory: &mut Memory, weights: &Weights, inputs: &Inputs, gradients: &mut Gradients) {
    match op {
        Op::Embed { .. }
        | Op::EmbedGrad { .. }
        | Op::AddRows { .. }
        | Op::AddRowsGrad { .. }
        | Op::AddLanguages { .. }
        | Op::AddLanguagesGrad { .. } => {
            tables(op, memory, weights, inputs, gradients);
        }
        Op::Norm { .. } | Op::NormGrad { .. } => norms(op, memory, weights, inputs, gradients),
        Op::Rope { .. } | Op::HeadNormRope { .. } | Op::HeadNormRopeGrad { .. } => {
            ropes(op, memory, weights, inputs, gradients);
        }
        Op::Linear { .. } | Op::LinearGradInput { .. } | Op::LinearGradWeight { .. } => {
            linears(op, memory, weights, gradients);
        }
        Op::Attention { .. } | Op::AttentionGrad { .. } => attention(op, memory, inputs),
        Op::Relu2 { .. } | Op::Relu2Grad { .. } | Op::Swiglu { .. } | Op::SwigluGrad { .. } => activations(op, memory),
        Op::ExpertLinear { .. } | Op::ExpertLinearGradInput { .. } | Op::ExpertLinearGradWeight { .. } => {
            experts(op, memory, weights, gradients);
        }
        Op::Gather { .. }
        | Op::GatherGrad { .. }
        | Op::Combine { .. }
        | Op::CombineGrad { .. }
        | Op::WeighShared { .. } => dispatch(op, memory),
        Op::DropHidden { x, moe } => drop_hidden(memory, inputs, (*x, *moe)),
        Op::Route { .. }
        | Op::RouteGrad { .. }
        | Op::Adapt { .. }
        | Op::AdaptGrad { .. }
        | Op::LinearCrossEntropy { .. }
        | Op::Ready { .. } => unreachable!("run by the tape itself"),
    }
}

pub(super) fn cross_entropy(
    memory: &mut Memory,
    (weights, inputs, gradients): (&Weights, &Inputs, &mut Gradients),
    (x, head, dx): (BufId, ParamId, BufId),
    loss: &mut CrossEntropyMemory,
) -> f64 {
    let dhead = gradients.slot(head.0);
    memory.write([dx], |memory, [dx]| {
        let (targets, how) = (&inputs.data.target_N, (inputs.scale, inputs.config.logit_softcap));
        ops::cross_entropy(memory.get(x), weights.get(head), targets, how, dx, dhead, loss)
    })
}

fn tables(op: &Op, memory: &mut Memory, weights: &Weights, inputs: &Inputs, gradients: &mut Gradients) {
    let (ids, buckets) = (&inputs.data.id_N, &inputs.data.bucket_N);
    match *op {
        Op::Embed { table, bigrams, out } => memory.write([out], |_, [out]| {
            ops::copy_table_rows(weights.get(table), ids, out);
            if let Some(bigrams) = bigrams {
                ops::add_table_rows(weights.get(bigrams), buckets, out);
            }
        }),
        Op::EmbedGrad { dout, table, bigrams } => {
            let d = memory.shape(dout).1;
            ops::scatter_rows(memory.get(dout), ids, d, gradients.slice_mut(table.0));
            if let Some(bigrams) = bigrams {
                ops::scatter_rows(memory.get(dout), buckets, d, gradients.slice_mut(bigrams.0));
            }
        }
        Op::AddRows { table, x } => memory.write([x], |_, [x]| ops::add_table_rows(weights.get(table), ids, x)),
        Op::AddRowsGrad { dx, table } => {
            ops::scatter_rows(memory.get(dx), ids, memory.shape(dx).1, gradients.slice_mut(table.0));
        }
        Op::AddLanguages { table, x } => memory.write([x], |_, [x]| {
            ops::add_table_rows(weights.get(table), &inputs.data.language_N, x);
        }),
        Op::AddLanguagesGrad { dx, table } => {
            let (rows, d) = (&inputs.data.language_N, memory.shape(dx).1);
            ops::scatter_rows(memory.get(dx), rows, d, gradients.slice_mut(table.0));
        }
        _ => unreachable!("not an operation on tables"),
    }
}

fn norms(op: &Op, memory: &mut Memory, weights: &Weights, inputs: &Inputs, gradients: &mut Gradients) {
    let eps = inputs.config.norm_eps as f32;
    match *op {
        Op::Norm { x, add: None, weight, out, inverse } => memory.write([out, inverse], |memory, [out, inverse]| {
            ops::norm(memory.get(x), None, weights.get(weight), eps, out, inverse);
        }),
        Op::Norm { x, add: Some((add, sum)), weight, out, inverse } => {
            memory.write([sum, out, inverse], |memory, [sum, out, inverse]| {
                let add = Some((memory.get(add), sum));
                ops::norm(memory.get(x), add, weights.get(weight), eps, out, inverse);
            });
        }
        Op::NormGrad { sum, inverse, weight, dout, dsum, accumulate } => memory.write([dsum], |memory, [dsum]| {
            let (sum, inverse, dout) = (memory.get(sum), memory.get(inverse), memory.get(dout));
            ops::norm_grad(sum, inverse, weights.get(weight), dout, (dsum, accumulate), gradients.slot(weight.0));
        }),
        _ => unreachable!("not a norm"),
    }
}

fn ropes(op: &Op, memory: &mut Memory, weights: &Weights, inputs: &Inputs, gradients: &mut Gradients) {
    let (l, k) = (inputs.data.l, inputs.config.d_head);
    let norm = |weight: ParamId, h: usize| {
        let (weight_K, eps) = (weights.get(weight), inputs.config.norm_eps as f32);
        HeadNormRope { rope: inputs.rope, weight_K, eps, l, h }
    };
    match *op {
        Op::Rope { x, backwards } => {
            let (h, sign) = (memory.shape(x).1 / k, if backwards { -1.0 } else { 1.0 });
            memory.write([x], |_, [x]| inputs.rope.rotate(x, h, |n| n % l, sign));
        }
        Op::HeadNormRope { x, weight, out, inverse } => {
            let norm = norm(weight, memory.shape(inverse).1);
            memory.write([out, inverse], |memory, [out, inverse]| norm.forward(memory.get(x), out, inverse));
        }
        Op::HeadNormRopeGrad { x, inverse, weight, dout } => {
            let norm = norm(weight, memory.shape(inverse).1);
            let dweight = gradients.slice_mut(weight.0);
            memory.write([dout], |memory, [dout]| norm.backward(memory.get(x), memory.get(inverse), dout, dweight));
        }
        _ => unreachable!("not a rotation"),
    }
}

fn linears(op: &Op, memory: &mut Memory, weights: &Weights, gradients: &mut Gradients) {
    match *op {
        Op::Linear { x, weight, bias, out } => memory.write([out], |memory, [out]| {
            let (n, d) = memory.shape(x);
            ops::linear_forward(memory.get(x), weights.get(weight), (n, d), (out, false));
            if let Some(bias) = bias {
                ops::add_bias(weights.get(bias), out);
            }
        }),
        Op::LinearGradInput { dout, weight, dx, accumulate } => memory.write([dx], |memory, [dx]| {
            ops::linear_grad_input(memory.get(dout), weights.get(weight), memory.shape(dout), (dx, accumulate));
        }),
        Op::LinearGradWeight { x, dout, weight, bias } => {
            let (n, f) = memory.shape(dout);
            ops::linear_grad_weight(memory.get(x), memory.get(dout), (n, f), gradients.slot(weight.0));
            if let Some(bias) = bias {
                ops::bias_grad(memory.get(dout), gradients.slice_mut(bias.0));
            }
        }
        _ => unreachable!("not a linear map"),
    }
}

fn experts(op: &Op, memory: &mut Memory, weights: &Weights, gradients: &mut Gradients) {
    match op {
        Op::ExpertLinear { x, weights: experts, moe, out, accumulate } => memory.write([*out], |memory, [out]| {
            let (d, f) = (memory.shape(*x).1, out.len() / memory.shape(*x).0);
            for (expert, rows) in memory.plans.get(*moe).stretches() {
                let (x, out) = (&memory.get(*x)[rows.start * d..rows.end * d], &mut out[rows.start * f..rows.end * f]);
                ops::linear_forward(x, weights.get(experts[expert]), (rows.len(), d), (out, *accumulate));
            }
        }),
        Op::ExpertLinearGradInput { dout, weights: experts, moe, dx, accumulate } => {
            memory.write([*dx], |memory, [dx]| {
                let (f, d) = (memory.shape(*dout).1, dx.len() / memory.shape(*dout).0);
                for (expert, rows) in memory.plans.get(*moe).stretches() {
                    let dout = &memory.get(*dout)[rows.start * f..rows.end * f];
                    let dx = &mut dx[rows.start * d..rows.end * d];
                    ops::linear_grad_input(dout, weights.get(experts[expert]), (rows.len(), f), (dx, *accumulate));
                }
            });
        }
        Op::ExpertLinearGradWeight { x, dout, weights: experts, moe } => {
            let ((_, d), (_, f)) = (memory.shape(*x), memory.shape(*dout));
            for (expert, rows) in memory.plans.get(*moe).stretches() {
                let x = &memory.get(*x)[rows.start * d..rows.end * d];
                let dout = &memory.get(*dout)[rows.start * f..rows.end * f];
                ops::linear_grad_weight(x, dout, (rows.len(), f), gradients.slot(experts[expert].0));
            }
        }
        _ => unreachable!("not an operation of experts"),
    }
}

pub(in crate::tape) fn attention_shape(config: &ModelConfig, b: usize, l: usize) -> AttentionShape {
    AttentionShape { b, l, m: l, h: config.n_heads, g: config.n_kv_heads, k: config.d_head }
}

fn attention(op: &Op, memory: &mut Memory, inputs: &Inputs) {
    let shape = attention_shape(inputs.config, inputs.data.b, inputs.data.l);
    let start = inputs.data.start_N.as_deref();
    match *op {
        Op::Attention { q, k, v, out, log_sum } => memory.write([out, log_sum], |memory, [out, log_sum]| {
            let (q, k, v) = (memory.get(q), memory.get(k), memory.get(v));
            shape.forward(ops::Inputs { q, k, v, start }, out, log_sum);
        }),
        Op::AttentionGrad { qkv: [q, k, v], out, log_sum, dout, dqkv } => memory.write(dqkv, |memory, dqkv| {
            let (q, k, v) = (memory.get(q), memory.get(k), memory.get(v));
            let inputs = ops::Inputs { q, k, v, start };
            shape.backward(inputs, memory.get(out), memory.get(log_sum), memory.get(dout), dqkv);
        }),
        _ => unreachable!("not attention"),
    }
}

fn activations(op: &Op, memory: &mut Memory) {
    match *op {
        Op::Relu2 { x, out } => memory.write([out], |memory, [out]| ops::relu2_forward(memory.get(x), out)),
        Op::Relu2Grad { x, dout } => memory.write([dout], |memory, [dout]| ops::relu2_backward(memory.get(x), dout)),
        Op::Swiglu { gate, up, out } => memory.write([out], |memory, [out]| {
            ops::swiglu_forward(memory.get(gate), memory.get(up), out);
        }),
        Op::SwigluGrad { gate, up, dout, dgate } => memory.write([dout, dgate], |memory, [dout, dgate]| {
            ops::swiglu_backward(memory.get(gate), memory.get(up), dout, dgate);
        }),
        _ => unreachable!("not an activation"),
    }
}

fn drop_hidden(memory: &mut Memory, inputs: &Inputs, (x, moe): (BufId, usize)) {
    let p = inputs.config.moe.as_ref().map_or(0.0, |moe| moe.dropout);
    let Some(draw) = inputs.draw else { return };
    let (stream, plans) = (draw.layer(moe).stream(DROPOUT), memory.plans);
    let (plan, f) = (plans.get(moe), memory.shape(x).1);
    memory.write([x], |_, [x]| {
        for (expert, rows) in plan.stretches() {
            let of_expert = x[rows.start * f..rows.end * f].par_chunks_exact_mut(f).zip(&plan.token_A[rows]);
            of_expert.for_each(|(row, &token)| {
                let keep = |at: usize| stream.keep(token as usize, (expert, at), f, p);
                row.iter_mut().enumerate().for_each(|(at, value)| *value *= keep(at));
            });
        }
    });
}

fn dispatch(op: &Op, memory: &mut Memory) {
    let plans = memory.plans;
    let plan = |moe: usize| plans.get(moe);
    match *op {
        Op::Gather { x, moe, out } => memory.write([out], |memory, [out]| {
            let (token_A, d) = (&plan(moe).token_A, memory.shape(x).1);
            ops::copy_table_rows(memory.get(x), token_A, &mut out[..token_A.len() * d]);
        }),
        Op::GatherGrad { dout, moe, dx, accumulate } => memory.write([dx], |memory, [dx]| {
            if !accumulate {
                dx.fill(0.0);
            }
            ops::scatter_rows(memory.get(dout), &plan(moe).token_A, memory.shape(dout).1, dx);
        }),
        Op::Combine { x, moe, out, accumulate } => memory.write([out], |memory, [out]| {
            if !accumulate {
                out.fill(0.0);
            }
            let (plan, d) = (plan(moe), memory.shape(x).1);
            let rows = memory.get(x).chunks_exact(d).zip(&plan.token_A).enumerate();
            rows.for_each(|(a, (x, &token))| {
                let out = &mut out[token as usize * d..][..d];
                out.iter_mut().zip(x).for_each(|(out, x)| *out += plan.weight(a) * x);
            });
        }),
        Op::CombineGrad { dout, moe, dx } => memory.write([dx], |memory, [dx]| {
            let (plan, d) = (plan(moe), memory.shape(dout).1);
            let rows = dx.chunks_exact_mut(d).zip(&plan.token_A).enumerate();
            rows.for_each(|(a, (dx, &token))| {
                let dout = &memory.get(dout)[token as usize * d..][..d];
                dx.iter_mut().zip(dout).for_each(|(dx, dout)| *dx = plan.weight(a) * dout);
            });
        }),
        Op::WeighShared { x, moe, out } => memory.write([out], |memory, [out]| {
            let weights = plan(moe).shared_weight_N.as_deref().unwrap_or_default();
            let d = memory.shape(x).1;
            let rows = out.chunks_exact_mut(d).zip(memory.get(x).chunks_exact(d)).zip(weights);
            rows.for_each(|((out, x), weight)| out.iter_mut().zip(x).for_each(|(out, x)| *out = weight * x));
        }),
        _ => unreachable!("not a dispatch"),
    }
}
