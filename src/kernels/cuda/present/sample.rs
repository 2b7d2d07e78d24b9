//! Token sampling on the GPU.

use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor};

use super::launch::Launch;
use super::to_u32;
use super::view::{NewTensor, pointer, upload, with_f32};
use crate::kernels::sample::{RandomSampling, SamplingMethod, check};

/// Sampling parameters of one token. `sample.cuh` has the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SamplingParams {
    random: f64,
    /// 0 for greedy sampling.
    temperature: f32,
    min_p: f32,
    top_p: f32,
    top_k: u32,
    row: u32,
    padding: u32,
}

// SAFETY: plain numbers, laid out as in `sample.cuh`.
unsafe impl DeviceRepr for SamplingParams {}

const THREADS: u32 = 1024;

/// `NO_TOKEN` of `sample.cuh`; as a `top_k`, all tokens.
const NONE: u32 = u32::MAX;

impl SamplingParams {
    fn new(&(row, method): &(u32, SamplingMethod)) -> Self {
        match method {
            SamplingMethod::Greedy => Self {
                row,
                ..Self::default()
            },
            SamplingMethod::Random(RandomSampling {
                temperature,
                min_p,
                top_k,
                top_p,
                random,
            }) => Self {
                random,
                temperature,
                min_p,
                top_p,
                // A k beyond the vocabulary keeps all tokens.
                top_k: top_k.map_or(NONE, |k| u32::try_from(k).unwrap_or(NONE)),
                row,
                padding: 0,
            },
        }
    }
}

/// [`sample`](crate::kernels::sample::sample): only the tokens are copied to the host.
pub fn sample(logits: &Tensor, methods: &[(u32, SamplingMethod)]) -> Result<Vec<Option<u32>>> {
    let vocabulary = check(logits, methods)?;
    with_f32(logits, |device, logits| {
        let params: Vec<_> = methods.iter().map(SamplingParams::new).collect();
        let params = upload(device, &params)?;
        let mut tokens = NewTensor::new(device, DType::U32, methods.len())?;
        let random = methods
            .iter()
            .any(|(_, method)| *method != SamplingMethod::Greedy);
        let room = if random {
            methods.len() * vocabulary
        } else {
            0
        };
        let mut keys = NewTensor::new(device, DType::U32, room)?;
        let launch = Launch::single(device, "sample")?
            .write(&tokens.write()?)
            .write(&keys.write()?)
            .read(&logits)
            .u64(pointer(&params))
            .size(vocabulary)?;
        let blocks = to_u32(methods.len())?;
        // SAFETY: sample's arguments; a token for each method, whose row exists (checked), and room
        // for the keys of each row if any of them is sampled at random.
        unsafe { launch.run([blocks, 1, 1], THREADS, 0) }?;
        let tokens = tokens.to_vec::<u32>()?;
        let token = |token| (token != NONE).then_some(token);
        Ok(tokens.into_iter().map(token).collect())
    })
}
