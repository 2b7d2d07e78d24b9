//! Rotary position embedding, in place: heads are turned where a fused product has put them.

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor};

use super::cpu::element::{elements, rows_mut, values};
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::{Arithmetic, Vectorised, dispatch};
use super::rms_norm::Normalise;

/// Turns heads `[rows, heads, dim]` (in the activations' dtype, a view with contiguous rows too) by the angles of their rows,
/// whose cosines and sines are `[rows, dim / 2]`: value `i` together with value `i + dim / 2`. Where
/// heads have norms, each is normalised first (see [`super::rms_norm`]).
pub fn rotate(heads: &Tensor, cos: &Tensor, sin: &Tensor, norms: Option<HeadNorms>) -> Result<()> {
    heads.inplace_op3(cos, sin, &Rotate { norms })
}

/// Norms of heads, each with its weight `[dim]`.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Of the first heads.
    pub queries: &'a Tensor,
    /// How many these are.
    pub query_heads: usize,
    /// Of the heads after them.
    pub keys: &'a Tensor,
    pub eps: f32,
}

struct Rotate<'a> {
    norms: Option<HeadNorms<'a>>,
}

/// Rows that a thread takes at least.
const GRAIN: usize = 8;

impl InplaceOp3 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<()> {
        let [rows, heads, dim] = self.check(x_layout, [cos_layout, sin_layout])?;
        let half = dim / 2;
        let norms = match &self.norms {
            Some(norms) => Some((values(norms.queries)?, values(norms.keys)?, norms)),
            None => None,
        };
        let (cos, sin) = (
            elements::<f32>(cos, cos_layout)?,
            elements::<f32>(sin, sin_layout)?,
        );
        let (x, stride) = rows_mut::<f32>(x, x_layout)?;
        let x = Scattered::new(x);
        for_each_range(rows, GRAIN, |range| {
            for row in range {
                // SAFETY: each row is one thread's.
                let heads = unsafe { x.slice(row * stride..row * stride + heads * dim) };
                let angles = row * half..(row + 1) * half;
                let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                for (number, head) in heads.chunks_exact_mut(dim).enumerate() {
                    if let Some((queries, keys, norms)) = &norms {
                        let is_query = number < norms.query_heads;
                        dispatch(Normalise {
                            x: head,
                            weight: if is_query { queries } else { keys },
                            eps: norms.eps,
                        });
                    }
                    dispatch(Head { head, cos, sin });
                }
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut candle_core::CudaStorage,
        x_layout: &Layout,
        cos: &candle_core::CudaStorage,
        cos_layout: &Layout,
        sin: &candle_core::CudaStorage,
        sin_layout: &Layout,
    ) -> Result<()> {
        use super::cuda::{Launch, View, ViewMut};
        use candle_core::DType;
        let [rows, heads, dim] = self.check(x_layout, [cos_layout, sin_layout])?;
        let device = x.device.clone();
        let (x, stride) = ViewMut::rows(x, x_layout)?;
        let launch = Launch::new(&device, "rotate", x.dtype())?
            .write(&x)
            .u64(stride as u64)
            .read(&View::new(cos, cos_layout)?.of(DType::F32)?)
            .read(&View::new(sin, sin_layout)?.of(DType::F32)?);
        let launch = match &self.norms {
            None => launch.null().null().u32(0).f32(0.0),
            Some(norms) => launch
                .u64(norm_on_gpu(norms.queries, x.dtype())?)
                .u64(norm_on_gpu(norms.keys, x.dtype())?)
                .size(norms.query_heads)?
                .f32(norms.eps),
        };
        let launch = launch.size(heads)?.size(dim)?;
        // SAFETY: rotate's arguments; rows, heads and angles are of the shapes that were checked.
        unsafe { launch.run_rows(rows) }
    }
}

impl Rotate<'_> {
    /// `[rows, heads, dim]`, once the angles and the norm are known to fit.
    fn check(&self, x: &Layout, angles: [&Layout; 2]) -> Result<[usize; 3]> {
        let (rows, heads, dim) = x.shape().dims3()?;
        let norm_fits = self
            .norms
            .is_none_or(|norms| [norms.queries, norms.keys].map(Tensor::elem_count) == [dim, dim]);
        let angles_fit = angles.map(|layout| layout.shape().dims() == [rows, dim / 2]);
        if dim % 2 != 0 || angles_fit != [true, true] || !norm_fits {
            let (x, cos) = (x.shape(), angles[0].shape());
            candle_core::bail!("rotate: heads {x:?}, angles {cos:?}");
        }
        Ok([rows, heads, dim])
    }
}

/// Where a norm's weight lies: the caller holds the tensor until after the launch.
#[cfg(feature = "cuda")]
fn norm_on_gpu(weight: &Tensor, dtype: candle_core::DType) -> Result<u64> {
    let (weight, layout) = weight.storage_and_layout();
    match &*weight {
        candle_core::Storage::Cuda(weight) => {
            Ok(super::cuda::View::new(weight, layout)?.of(dtype)?.pointer())
        }
        _ => candle_core::bail!("rotate: a norm that is not on the GPU"),
    }
}

struct Head<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Vectorised for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (first, second) = self.head.split_at_mut(self.cos.len());
        let angles = self.cos.iter().zip(self.sin);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp};
    use candle_nn::rotary_emb::rope_thd;

    use super::super::rms_norm::rms_norm;
    use super::*;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn turns_a_view_as_candle_turns_a_copy_and_leaves_the_rest() {
        for (rows, dim) in [(1, 8), (5, 64), (40, 20)] {
            let fused = random(&[rows, 7, dim]);
            let before = fused.copy().unwrap();
            let (cos, sin) = (random(&[rows, dim / 2]), random(&[rows, dim / 2]));
            let (queries, keys) = (random(&[dim]), random(&[dim]));
            let norms = HeadNorms {
                queries: &queries,
                query_heads: 2,
                keys: &keys,
                eps: 1e-5,
            };
            for norms in [None, Some(norms)] {
                let heads = fused.narrow(1, 2, 3).unwrap();
                let mut want = heads.contiguous().unwrap().copy().unwrap();
                if let Some(norms) = norms {
                    let normed = |first, count, weight| {
                        let heads = want.narrow(1, first, count).unwrap();
                        rms_norm(&heads.contiguous().unwrap(), weight, norms.eps).unwrap()
                    };
                    let parts = [normed(0, 2, norms.queries), normed(2, 1, norms.keys)];
                    want = Tensor::cat(&parts, 1).unwrap();
                }
                let want = rope_thd(&want.unsqueeze(0).unwrap(), &cos, &sin).unwrap();
                let want = want.i(0).unwrap();
                rotate(&heads, &cos, &sin, norms).unwrap();
                let worst = (heads - want).unwrap().abs().unwrap().max_all().unwrap();
                assert!(worst.to_scalar::<f32>().unwrap() < 1e-5);
            }
            for untouched in [0..2, 5..7] {
                let part = |t: &Tensor| {
                    let part = t.i((.., untouched.clone())).unwrap();
                    part.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(part(&fused), part(&before));
            }
        }
    }

    #[test]
    fn refuses_angles_of_other_rows() {
        let heads = random(&[3, 2, 8]);
        let (cos, sin) = (random(&[2, 4]), random(&[2, 4]));
        assert!(rotate(&heads, &cos, &sin, None).is_err());
    }
}
