//! One decoder layer, forward and backward.

use candle_core::{D, IndexOp, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

use super::{Gradients, Pass, Slot};
use crate::kernels::activation::{silu_mul, silu_mul_backward};
use crate::kernels::training::attention::{
    CausalOptions, causal_attention, causal_attention_backward,
};
use crate::model::{Layer, Linear, ModelConfig, Projection};

/// `x·Wᵀ + b`, by candle's matmul: at hundreds of rows its GEMM is the fastest available.
pub fn product(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    let y = x.matmul(&linear.weight()?.t()?)?;
    match linear.bias() {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// One layer in a pass.
pub struct LayerPass<'a> {
    pub index: usize,
    pub layer: &'a Layer,
    pub config: &'a ModelConfig,
    pub pass: &'a Pass<'a>,
}

/// Activations saved for the backward pass. Cheap ones, such as norms and the MLP's product, are
/// recomputed.
pub struct Saved {
    /// Queries and keys before their norm, if they have one: `[rows, heads, head_dim]`.
    raw: Option<(Tensor, Tensor)>,
    /// Rotated queries and keys, and values: `[rows, heads, head_dim]`.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Output of attention, `[rows, heads, head_dim]`, and the log-sum-exp of each softmax.
    attended: Tensor,
    log_sums: Tensor,
    /// The residual stream between attention and MLP, `[rows, hidden]`.
    middle: Tensor,
    /// `[rows, 2·intermediate]`.
    gate_up: Tensor,
}

impl LayerPass<'_> {
    /// The output for `x`, both `[rows, hidden]`, and the activations for the backward pass.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        let Self { layer, pass, .. } = self;
        let rows = x.dim(0)?;
        let qkv = product(&pass.norm(x, &layer.input_norm)?, &layer.qkv)?;
        let [q, k, v] = self.split(&qkv)?;
        let (raw, q, k) = match (&layer.q_norm, &layer.k_norm) {
            (Some(q_norm), Some(k_norm)) => {
                let (qn, kn) = (pass.norm(&q, q_norm)?, pass.norm(&k, k_norm)?);
                (Some((q, k)), qn, kn)
            }
            _ => (None, q, k),
        };
        let (q, k) = (self.rotate(&q, &pass.sin)?, self.rotate(&k, &pass.sin)?);
        let (attended, log_sums) = causal_attention(&q, &k, &v, &self.options())?;
        let flat = attended.reshape((rows, self.config.heads * self.config.head_dim))?;
        let middle = (x + product(&flat, &layer.o)?)?;
        let h = pass.norm(&middle, &layer.post_attention_norm)?;
        let gate_up = product(&h, &layer.gate_up)?;
        let y = (&middle + product(&silu_mul(&gate_up)?, &layer.down)?)?;
        let saved = Saved {
            raw,
            q,
            k,
            v,
            attended,
            log_sums,
            middle,
            gate_up,
        };
        Ok((y, saved))
    }

    /// The gradient of the layer's input `x` from that of its output, `dy`; `None` unless
    /// `needs_dx`.
    pub fn backward(
        &self,
        x: &Tensor,
        saved: &Saved,
        dy: &Tensor,
        needs_dx: bool,
        gradients: &mut dyn Gradients,
    ) -> Result<Option<Tensor>> {
        let Self {
            layer, pass, index, ..
        } = *self;
        let dmiddle = (dy + self.mlp_backward(saved, dy, gradients)?)?;
        let dqkv = self.attention_backward(saved, &dmiddle, gradients)?;
        let h = pass.norm(x, &layer.input_norm)?;
        let Some(dh) = self.linear_gradients(Projection::Qkv, &h, &dqkv, needs_dx, gradients)?
        else {
            return Ok(None);
        };
        pass.norm_gradient(Slot::InputNorm(index), x, &dh, gradients)?;
        let dx = (dmiddle + pass.norm_backward(x, &layer.input_norm, &dh)?)?;
        Ok(Some(dx))
    }

    /// The MLP's share of the gradient of the residual stream before it.
    fn mlp_backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        gradients: &mut dyn Gradients,
    ) -> Result<Tensor> {
        let Self {
            layer, pass, index, ..
        } = *self;
        let activated = silu_mul(&saved.gate_up)?;
        let d = self.linear_backward(Projection::Down, &activated, dy, gradients)?;
        drop(activated);
        let d = silu_mul_backward(&saved.gate_up, &d)?;
        let h = pass.norm(&saved.middle, &layer.post_attention_norm)?;
        let d = self.linear_backward(Projection::GateUp, &h, &d, gradients)?;
        let slot = Slot::PostAttentionNorm(index);
        pass.norm_gradient(slot, &saved.middle, &d, gradients)?;
        pass.norm_backward(&saved.middle, &layer.post_attention_norm, &d)
    }

    /// The gradient of the fused queries, keys and values, `[rows, (heads + 2·kv_heads)·head_dim]`.
    fn attention_backward(
        &self,
        saved: &Saved,
        dmiddle: &Tensor,
        gradients: &mut dyn Gradients,
    ) -> Result<Tensor> {
        let (rows, heads, dim) = saved.q.dims3()?;
        let Saved {
            q,
            k,
            v,
            attended,
            log_sums,
            ..
        } = saved;
        let flat = attended.reshape((rows, heads * dim))?;
        let d = self.linear_backward(Projection::O, &flat, dmiddle, gradients)?;
        let d = d.reshape((rows, heads, dim))?;
        let options = self.options();
        let [dq, dk, dv] = causal_attention_backward([q, k, v], attended, log_sums, &d, &options)?;
        // The transpose of a rotation turns by the negative angle.
        let back = self.pass.sin.neg()?;
        let (mut dq, mut dk) = (self.rotate(&dq, &back)?, self.rotate(&dk, &back)?);
        if let (Some((q, k)), Some(q_norm), Some(k_norm)) =
            (&saved.raw, &self.layer.q_norm, &self.layer.k_norm)
        {
            let pass = self.pass;
            pass.norm_gradient(Slot::QueryNorm(self.index), q, &dq, gradients)?;
            pass.norm_gradient(Slot::KeyNorm(self.index), k, &dk, gradients)?;
            dq = pass.norm_backward(q, q_norm, &dq)?;
            dk = pass.norm_backward(k, k_norm, &dk)?;
        }
        let flat = |t: &Tensor| t.reshape((rows, t.dim(1)? * dim));
        Tensor::cat(&[flat(&dq)?, flat(&dk)?, flat(&dv)?], 1)
    }

    /// Adds the weight gradient of a projection, as its factors, and returns the gradient of its
    /// input.
    fn linear_backward(
        &self,
        projection: Projection,
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut dyn Gradients,
    ) -> Result<Tensor> {
        let dx = self.linear_gradients(projection, x, dy, true, gradients)?;
        Ok(dx.expect("the gradient was requested"))
    }

    /// As [`Self::linear_backward`], with the bias gradient if it is trained; returns `None` unless
    /// `needs_dx`.
    fn linear_gradients(
        &self,
        projection: Projection,
        x: &Tensor,
        dy: &Tensor,
        needs_dx: bool,
        gradients: &mut dyn Gradients,
    ) -> Result<Option<Tensor>> {
        let linear = self.layer.linear(projection);
        gradients.product(Slot::Weight(self.index, projection), x, dy)?;
        if linear.bias().is_some() && gradients.everything() {
            gradients.add(Slot::Bias(self.index, projection), &dy.sum(0)?)?;
        }
        needs_dx.then(|| dy.matmul(linear.weight()?)).transpose()
    }

    /// The queries, keys and values of a fused product, each `[rows, heads, head_dim]`.
    fn split(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let ModelConfig {
            heads,
            kv_heads,
            head_dim: dim,
            ..
        } = *self.config;
        let rows = qkv.dim(0)?;
        let part = |from: usize, heads: usize| {
            let part = qkv.narrow(D::Minus1, from * dim, heads * dim)?;
            part.reshape((rows, heads, dim))?.contiguous()
        };
        Ok([
            part(0, heads)?,
            part(heads, kv_heads)?,
            part(heads + kv_heads, kv_heads)?,
        ])
    }

    fn rotate(&self, x: &Tensor, sin: &Tensor) -> Result<Tensor> {
        rope_thd(&x.unsqueeze(0)?, &self.pass.cos, sin)?.i(0)
    }

    fn options(&self) -> CausalOptions<'_> {
        self.pass.options(self.config.windows[self.index])
    }
}
