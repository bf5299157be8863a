//! The second half of the tape: each forward operation's gradient, in reverse order.

use super::super::op::{BufId, Op};
use super::{Attention, Chosen, Ffn, Hidden, Layer, Normed, Recorder, Weights};
use crate::error::Result;

impl Recorder<'_> {
    /// Turns `dx`, the gradient of the layer's output in the residual stream, into that of its input, in place.
    pub(super) fn layer_grad(&mut self, layer: &Layer, dx: BufId) -> Result<()> {
        let name = &layer.name;
        let dnormed = self.ffn_grad(layer, dx)?;
        let weight = format!("{name}.post_attention_layernorm.weight");
        self.norm_grad(layer.middle, layer.ffn_norm, &weight, dnormed, (dx, true))?;
        let dattended = self.like(layer.attention.out);
        self.linear_grad(layer.attention.out, &format!("{name}.self_attn.o_proj"), dx, (dattended, false))?;
        let dnormed = self.attention_grad(name, &layer.attention, layer.norm.out, dattended)?;
        self.norm_grad(layer.x, layer.norm, &format!("{name}.input_layernorm.weight"), dnormed, (dx, true))
    }

    pub(super) fn norm_grad(
        &mut self,
        sum: BufId,
        normed: Normed,
        weight: &str,
        dout: BufId,
        (dsum, accumulate): (BufId, bool),
    ) -> Result<()> {
        let weight = self.param(weight)?;
        self.ops.push(Op::NormGrad { sum, inverse: normed.inverse, weight, dout, dsum, accumulate });
        Ok(())
    }

    /// The gradient of what the layer's attention reads.
    fn attention_grad(&mut self, name: &str, attention: &Attention, x: BufId, dout: BufId) -> Result<BufId> {
        let dqkv = attention.qkv.map(|buffer| self.like(buffer));
        let Attention { raw, qkv, out, log_sum, .. } = *attention;
        self.ops.push(Op::AttentionGrad { qkv, out, log_sum, dout, dqkv });
        match attention.inverse {
            Some(inverses) => {
                for (i, norm) in ["q_norm", "k_norm"].into_iter().enumerate() {
                    let weight = self.param(&format!("{name}.self_attn.{norm}.weight"))?;
                    self.ops.push(Op::HeadNormRopeGrad { x: raw[i], inverse: inverses[i], weight, dout: dqkv[i] });
                }
            }
            None => self.ops.extend(dqkv[..2].iter().map(|&x| Op::Rope { x, backwards: true })),
        }
        let values = format!("{name}.self_attn.value_embedding.weight");
        if self.params.contains_key(values.as_str()) {
            let table = self.param(&values)?;
            self.ops.push(Op::AddRowsGrad { dx: dqkv[2], table });
        }
        let dx = self.like(x);
        for (i, projection) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            self.linear_grad(x, &format!("{name}.self_attn.{projection}"), dqkv[i], (dx, i > 0))?;
        }
        Ok(dx)
    }

    /// The gradient of what the layer's feed-forward half reads.
    fn ffn_grad(&mut self, layer: &Layer, dout: BufId) -> Result<BufId> {
        let dx = self.like(layer.ffn_norm.out);
        match &layer.ffn {
            Ffn::Dense(hidden) => self.feed_forward_grad(hidden, dout, (dx, false))?,
            Ffn::Moe { moe, shared, routed, chosen } => {
                if let Some(hidden) = shared {
                    self.shared_grad(hidden, *moe, dout, dx)?;
                }
                if let Some(hidden) = routed {
                    self.routed_grad(hidden, *moe, dout, (dx, shared.is_some()))?;
                }
                if let Some(Chosen { y, shared }) = *chosen {
                    self.ops.push(Op::RouteGrad { dout, y, shared, moe: *moe, dx });
                }
            }
        }
        Ok(dx)
    }

    fn shared_grad(&mut self, hidden: &Hidden, moe: usize, dout: BufId, dx: BufId) -> Result<()> {
        if self.data.plans[moe].shared_weight_N.is_none() {
            return self.feed_forward_grad(hidden, dout, (dx, false));
        }
        let dweighed = self.like(dout);
        self.ops.push(Op::WeighShared { x: dout, moe, out: dweighed });
        self.feed_forward_grad(hidden, dweighed, (dx, false))
    }

    fn routed_grad(&mut self, hidden: &Hidden, moe: usize, dout: BufId, (dx, accumulate): (BufId, bool)) -> Result<()> {
        if self.data.plans[moe].is_plain() {
            return self.feed_forward_grad(hidden, dout, (dx, accumulate));
        }
        let [dy, dgathered] = [0; 2].map(|_| self.like(hidden.x));
        self.ops.push(Op::CombineGrad { dout, moe, dx: dy });
        self.feed_forward_grad(hidden, dy, (dgathered, false))?;
        self.ops.push(Op::GatherGrad { dout: dgathered, moe, dx, accumulate });
        Ok(())
    }

    fn feed_forward_grad(&mut self, hidden: &Hidden, dout: BufId, (dx, accumulate): (BufId, bool)) -> Result<()> {
        let Hidden { weights, x, gate, up, act } = hidden;
        let dact = self.like(*act);
        self.product_grad(*act, weights, "down_proj", dout, (dact, false))?;
        self.drop_hidden(weights, dact);
        let Some(gate) = *gate else {
            self.ops.push(Op::Relu2Grad { x: *up, dout: dact });
            return self.product_grad(*x, weights, "up_proj", dact, (dx, accumulate));
        };
        let dgate = self.like(gate);
        self.ops.push(Op::SwigluGrad { gate, up: *up, dout: dact, dgate });
        self.product_grad(*x, weights, "up_proj", dact, (dx, accumulate))?;
        self.product_grad(*x, weights, "gate_proj", dgate, (dx, true))
    }

    fn product_grad(
        &mut self,
        x: BufId,
        weights: &Weights,
        projection: &str,
        dout: BufId,
        (dx, accumulate): (BufId, bool),
    ) -> Result<()> {
        match weights {
            Weights::One(name) => self.linear_grad(x, &format!("{name}.{projection}"), dout, (dx, accumulate)),
            Weights::Experts { moe, .. } => {
                let (moe, params) = (*moe, self.expert_params(weights, projection)?);
                self.ops.push(Op::ExpertLinearGradWeight { x, dout, weights: params.clone(), moe });
                self.ops.push(Op::ExpertLinearGradInput { dout, weights: params, moe, dx, accumulate });
                Ok(())
            }
        }
    }

    fn linear_grad(&mut self, x: BufId, name: &str, dout: BufId, (dx, accumulate): (BufId, bool)) -> Result<()> {
        let (weight, bias) = self.weight_and_bias(name)?;
        self.ops.push(Op::LinearGradWeight { x, dout, weight, bias });
        self.ops.push(Op::LinearGradInput { dout, weight, dx, accumulate });
        Ok(())
    }
}
