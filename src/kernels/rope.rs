//! Rotary position embedding (RoPE), in place, because the heads are views of a fused product.

use candle_core::{CpuStorage, CudaStorage, InplaceOp3, Layout, Result, Tensor};

use super::cpu::element::{elements, rows_mut, values};
use super::cpu::parallel::{Scattered, for_each_range};
use super::cpu::simd::{Arithmetic, Vectorised, dispatch};
use super::cuda;
use super::rms_norm::Normalise;

/// Rotates heads `[rows, heads, dim]` by the angles of their rows; the pairs are values `i` and `i
/// + dim / 2` of a head. The heads are in the activations' dtype and may be a view with contiguous
/// rows; `cos` and `sin` are `[rows, dim / 2]`. With `norms`, each head is first normalised (see
/// [`super::rms_norm`]).
pub fn rotate(heads: &Tensor, cos: &Tensor, sin: &Tensor, norms: Option<HeadNorms>) -> Result<()> {
    heads.inplace_op3(cos, sin, &Rotate { norms })
}

/// RMS norms of query and key heads, with weights `[dim]`.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Weight of the query heads, which come first.
    pub queries: &'a Tensor,
    /// Number of query heads.
    pub query_heads: usize,
    /// Weight of the key heads.
    pub keys: &'a Tensor,
    pub eps: f32,
}

struct Rotate<'a> {
    norms: Option<HeadNorms<'a>>,
}

/// Minimum rows per range of a thread.
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
        let [rows, heads, dim] = check(x_layout, [cos_layout, sin_layout], self.norms.as_ref())?;
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
                // SAFETY: each row belongs to one thread.
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

    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        cos: &CudaStorage,
        cos_layout: &Layout,
        sin: &CudaStorage,
        sin_layout: &Layout,
    ) -> Result<()> {
        let angles = [(cos, cos_layout), (sin, sin_layout)];
        cuda::rotate((x, x_layout), angles, self.norms.as_ref())
    }
}

/// Checks the shapes, and returns `[rows, heads, dim]`.
pub(super) fn check(
    x: &Layout,
    angles: [&Layout; 2],
    norms: Option<&HeadNorms>,
) -> Result<[usize; 3]> {
    let (rows, heads, dim) = x.shape().dims3()?;
    let norms_fit =
        norms.is_none_or(|norms| [norms.queries, norms.keys].map(Tensor::elem_count) == [dim, dim]);
    let angles_fit = angles.map(|layout| layout.shape().dims() == [rows, dim / 2]);
    if dim % 2 != 0 || angles_fit != [true, true] || !norms_fit {
        let (x, cos) = (x.shape(), angles[0].shape());
        candle_core::bail!("rotate: shapes do not match: heads {x:?}, angles {cos:?}");
    }
    Ok([rows, heads, dim])
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
    fn rotates_a_view_as_candle_rotates_a_copy() {
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
    fn refuses_angles_for_a_different_number_of_rows() {
        let heads = random(&[3, 2, 8]);
        let (cos, sin) = (random(&[2, 4]), random(&[2, 4]));
        assert!(rotate(&heads, &cos, &sin, None).is_err());
    }
}
