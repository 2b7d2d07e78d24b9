//! Tokens chosen where the logits are.

use candle_core::cuda::CudaDevice;
use candle_core::cuda::cudarc::driver::DeviceRepr;
use candle_core::{DType, Layout, Result};

use super::launch::Launch;
use super::view::{View, ViewMut, alloc, download, pointer, upload};
use crate::kernels::sample::{RandomSampling, SamplingMethod};

/// `logits.cuh` has the same struct: how a token is chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct DeviceChoice {
    random: f64,
    temperature: f32,
    min_p: f32,
    top_p: f32,
    top_k: u32,
    row: u32,
    padding: u32,
}

// SAFETY: plain numbers, laid out as in `logits.cuh`.
unsafe impl DeviceRepr for DeviceChoice {}

const THREADS: u32 = 1024;
/// As in `logits.cuh`.
const NONE: u32 = u32::MAX;

/// Tokens by rows of `vocabulary` logits.
///
/// # Errors
/// There is no memory for them, or the logits are not in f32.
///
/// # Safety
/// The choices' rows are there.
pub unsafe fn sample(
    device: &CudaDevice,
    logits: View,
    vocabulary: usize,
    choices: &[(u32, SamplingMethod)],
) -> Result<Vec<Option<u32>>> {
    let device_choices = choices.iter().map(|&(row, choice)| match choice {
        SamplingMethod::Greedy => DeviceChoice {
            row,
            ..Default::default()
        },
        SamplingMethod::Random(RandomSampling {
            temperature,
            min_p,
            top_k,
            top_p,
            random,
        }) => DeviceChoice {
            random,
            temperature,
            min_p,
            top_p,
            // More than there are is all of them.
            top_k: top_k.map_or(NONE, |k| u32::try_from(k).unwrap_or(NONE)),
            row,
            padding: 0,
        },
    });
    let device_choices = upload(device, &device_choices.collect::<Vec<_>>())?;
    let mut tokens = alloc(device, DType::U32, choices.len())?;
    let layout = Layout::contiguous(choices.len());
    let drawn = choices
        .iter()
        .any(|(_, choice)| *choice != SamplingMethod::Greedy);
    let room = Layout::contiguous(if drawn { choices.len() * vocabulary } else { 0 });
    let mut keys = alloc(device, DType::U32, room.shape())?;
    let launch = Launch::single(device, "choose")?
        .write(&ViewMut::new(&mut tokens, &layout)?)
        .write(&ViewMut::new(&mut keys, &room)?)
        .read(&logits.of(DType::F32)?)
        .u64(pointer(&device_choices))
        .size(vocabulary)?;
    let blocks = super::narrow(choices.len())?;
    // SAFETY: choose's arguments; a token for each choice, whose row is there (the caller's promise), and room for the
    // row's keys where it is drawn.
    unsafe { launch.run([blocks, 1, 1], THREADS, 0) }?;
    let tokens = download::<u32>(&tokens, &layout)?;
    let token = |token| (token != NONE).then_some(token);
    Ok(tokens.into_iter().map(token).collect())
}
