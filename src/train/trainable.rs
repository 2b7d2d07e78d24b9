//! The trained values of a phase: whole tensors or positions in them, with gradients and optimizer
//! state for these values only.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use super::backprop::{Gradients, Slot};
use super::optimizer::{OptimizerKind, State, Update};
use crate::kernels::Pattern;
use crate::kernels::cpu::gemm;
use crate::kernels::training::optimizer::sum_of_squares;
use crate::kernels::training::{accumulate, sddmm};
use crate::model::Decoder;

/// The trained values of a decoder.
pub struct Trainable {
    variables: BTreeMap<Slot, Variable>,
    everything: bool,
}

/// One trained tensor.
struct Variable {
    /// The resident tensor.
    weight: Tensor,
    part: Part,
    /// The trained values, in f32: the weight itself, or its values at the positions, `[nonzeros]`.
    values: Tensor,
    /// Shaped like `values`.
    gradient: Tensor,
    /// `None` if gradients are only scored.
    state: Option<State>,
}

/// Trained part of a tensor.
enum Part {
    /// The whole tensor, except for frozen positions.
    Whole {
        /// The frozen positions and their values.
        frozen: Option<(Pattern, Tensor)>,
    },
    /// Only these positions.
    Positions(Pattern),
}

impl Trainable {
    /// Every tensor of the decoder, for a full fine-tune. Positions in `frozen` keep their values.
    /// Without an `optimizer` gradients are computed but no weight is moved.
    pub fn whole(
        decoder: &Decoder,
        mut frozen: BTreeMap<Slot, Pattern>,
        optimizer: Option<OptimizerKind>,
    ) -> Result<Self> {
        let weights = decoder.weights();
        let slots = Slot::all(weights, decoder.config().tie_word_embeddings);
        let variable = |slot: Slot| {
            let weight = slot.tensor(weights).expect("a slot of this decoder");
            let frozen = frozen.remove(&slot).map(|pattern| {
                let values = sddmm::gather(weight, &pattern)?;
                Ok::<_, candle_core::Error>((pattern, values))
            });
            let part = Part::Whole {
                frozen: frozen.transpose()?,
            };
            Ok((
                slot,
                Variable::new(weight, part, weight.clone(), optimizer)?,
            ))
        };
        Ok(Self {
            variables: slots.into_iter().map(variable).collect::<Result<_>>()?,
            everything: true,
        })
    }

    /// Only the positions of a mask.
    pub fn positions(
        decoder: &Decoder,
        mask: BTreeMap<Slot, Pattern>,
        optimizer: OptimizerKind,
    ) -> Result<Self> {
        let variable = |(slot, pattern): (Slot, Pattern)| {
            let weight = slot
                .tensor(decoder.weights())
                .expect("a slot of this decoder");
            let values = sddmm::gather(weight, &pattern)?;
            let part = Part::Positions(pattern);
            Ok((slot, Variable::new(weight, part, values, Some(optimizer))?))
        };
        Ok(Self {
            variables: mask.into_iter().map(variable).collect::<Result<_>>()?,
            everything: false,
        })
    }

    /// L2 norm of all gradients; sets those of frozen positions to zero first.
    pub fn gradient_norm(&self) -> Result<f64> {
        for variable in self.variables.values() {
            if let Part::Whole {
                frozen: Some((pattern, values)),
            } = &variable.part
            {
                sddmm::set(&variable.gradient, pattern, &values.zeros_like()?)?;
            }
        }
        let squares = self.variables.values().map(|v| sum_of_squares(&v.gradient));
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    /// Takes one optimizer step and clears the gradients.
    pub fn step(&mut self, update: &Update) -> Result<()> {
        for (slot, variable) in &self.variables {
            let Some(state) = &variable.state else {
                continue;
            };
            let (values, gradient) = (&variable.values, &variable.gradient);
            update.apply(values, gradient, state, slot.decays())?;
            match &variable.part {
                Part::Positions(pattern) => sddmm::set(&variable.weight, pattern, values)?,
                // Undo the weight decay of the frozen positions.
                Part::Whole {
                    frozen: Some((pattern, kept)),
                } => sddmm::set(&variable.weight, pattern, kept)?,
                Part::Whole { frozen: None } => {}
            }
            accumulate::clear(gradient)?;
        }
        Ok(())
    }

    /// Passes each gradient to `take`, then clears it.
    pub fn drain(&mut self, mut take: impl FnMut(Slot, &Tensor) -> Result<()>) -> Result<()> {
        for (slot, variable) in &self.variables {
            take(*slot, &variable.gradient)?;
            accumulate::clear(&variable.gradient)?;
        }
        Ok(())
    }

    /// The trained values at the positions of the mask, `[nonzeros]` per slot.
    pub fn trained(&self) -> impl Iterator<Item = (Slot, &Pattern, &Tensor)> {
        self.variables
            .iter()
            .filter_map(|(slot, variable)| match &variable.part {
                Part::Positions(pattern) => Some((*slot, pattern, &variable.values)),
                Part::Whole { .. } => None,
            })
    }

    /// Number of trained values.
    pub fn values(&self) -> usize {
        let frozen = |v: &Variable| match &v.part {
            Part::Whole { frozen } => frozen.as_ref().map_or(0, |(pattern, _)| pattern.nonzeros()),
            Part::Positions(_) => 0,
        };
        let variables = self.variables.values();
        variables.map(|v| v.values.elem_count() - frozen(v)).sum()
    }

    /// Bytes of gradients, optimizer state, and values stored apart from the weights.
    pub fn bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let variable = |v: &Variable| {
            let state = v
                .state
                .iter()
                .map(|state| bytes(&state.mean_square) + state.mean.as_ref().map_or(0, bytes));
            let kept = match v.part {
                Part::Whole { .. } => 0,
                Part::Positions(_) => bytes(&v.values),
            };
            bytes(&v.gradient) + state.sum::<usize>() + kept
        };
        self.variables.values().map(variable).sum()
    }

    /// The tensors that a resumed run needs, by name. Gradients are zero between steps and left
    /// out.
    pub fn save(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for (slot, variable) in &self.variables {
            let mut keep = |what: &str, tensor: &Tensor| {
                all.push((format!("{slot}.{what}"), tensor.clone()));
            };
            keep("values", &variable.values);
            if let Some(state) = &variable.state {
                keep("mean_square", &state.mean_square);
                if let Some(mean) = &state.mean {
                    keep("mean", mean);
                }
            }
            if let Part::Positions(pattern) = &variable.part {
                let positions: Vec<u32> = pattern.flat().map(|p| p as u32).collect();
                keep("positions", &Tensor::new(positions, &Device::Cpu)?);
            }
        }
        Ok(all)
    }

    /// Restores the tensors of [`Self::save`], read by name.
    ///
    /// # Errors
    /// Errors of `load`, or a tensor of the wrong shape.
    pub fn restore<E: From<candle_core::Error>>(
        &mut self,
        mut load: impl FnMut(&str) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(), E> {
        for (slot, variable) in &self.variables {
            let mut read = |what: &str, into: &Tensor| {
                let tensor = load(&format!("{slot}.{what}"))?;
                Ok::<_, E>(into.slice_set(&tensor.to_device(into.device())?, 0, 0)?)
            };
            read("values", &variable.values)?;
            if let Some(state) = &variable.state {
                if let Some(mean) = &state.mean {
                    read("mean", mean)?;
                }
                read("mean_square", &state.mean_square)?;
            }
            if let Part::Positions(pattern) = &variable.part {
                sddmm::set(&variable.weight, pattern, &variable.values)?;
            }
        }
        Ok(())
    }
}

impl Variable {
    fn new(
        weight: &Tensor,
        part: Part,
        values: Tensor,
        optimizer: Option<OptimizerKind>,
    ) -> Result<Self> {
        let state = optimizer.map(|kind| State::new(kind, &values));
        Ok(Self {
            weight: weight.clone(),
            part,
            gradient: values.zeros_like()?,
            state: state.transpose()?,
            values,
        })
    }
}

impl Gradients for Trainable {
    fn everything(&self) -> bool {
        self.everything
    }

    fn product(&mut self, slot: Slot, x: &Tensor, dy: &Tensor) -> Result<()> {
        let Some(variable) = self.variables.get(&slot) else {
            return Ok(());
        };
        match &variable.part {
            Part::Whole { .. } => gemm::add_weight_gradient(&variable.gradient, dy, x),
            Part::Positions(pattern) => {
                sddmm::add_sddmm_gradient(&variable.gradient, pattern, x, dy)
            }
        }
    }

    fn add(&mut self, slot: Slot, gradient: &Tensor) -> Result<()> {
        match self.variables.get(&slot) {
            Some(variable) => accumulate::add(&variable.gradient, gradient),
            None => Ok(()),
        }
    }

    fn add_rows(&mut self, slot: Slot, rows: &[u32], gradient: &Tensor) -> Result<()> {
        match self.variables.get(&slot) {
            Some(variable) => accumulate::add_rows(&variable.gradient, rows, gradient),
            None => Ok(()),
        }
    }
}
