//! Stand-in for `present` in builds without feature `cuda`. [`open`] returns an error, so
//! no tensor is ever on a GPU: types for GPU data have no values, and other calls return errors.

use std::convert::Infallible;
use std::marker::PhantomData;

use candle_core::{CudaDevice, CudaStorage, Device, Error, Result, Tensor};

use super::{InOut, Input, Output};
use crate::kernels::attention::{Span, Spans};
use crate::kernels::rope::HeadNorms;
use crate::kernels::sample::SamplingMethod;
use crate::kernels::step::graphs::GraphKey;
use crate::kernels::step::indices::Indices;
use crate::kernels::ticket::overlay::{OverlayRows, Overlays, WeightDeltas};
use crate::kernels::training::attention::CausalOptions;
use crate::kernels::training::optimizer::{Power, Step};
use crate::kernels::training::pattern::Pattern;

/// Whether this build has CUDA kernels.
pub const AVAILABLE: bool = false;

fn missing<T>() -> Result<T> {
    Err(Error::NotCompiledWithCudaSupport)
}

/// # Errors
/// Always.
pub fn open(_: usize) -> Result<Device> {
    missing()
}

pub fn free_memory(_: &CudaDevice) -> Result<usize> {
    missing()
}

pub fn name(_: &CudaDevice) -> String {
    "no GPU".to_owned()
}

pub fn launches() -> u64 {
    0
}

pub enum Staging {}

pub enum StagedSlice {}

impl Staging {
    pub fn new(_: &Device) -> Option<Self> {
        None
    }

    pub fn stage(&mut self, _: &[u32]) -> StagedSlice {
        match *self {}
    }

    pub fn discard(&mut self) {
        match *self {}
    }

    pub fn upload(&mut self) -> Result<()> {
        match *self {}
    }

    pub fn start(&self) -> u64 {
        match *self {}
    }
}

pub enum DeviceGraphs {}

impl DeviceGraphs {
    pub const WARM_UP: usize = 0;

    pub fn new(_: &Device) -> Option<Self> {
        None
    }

    pub fn captured(&self) -> usize {
        match *self {}
    }

    pub fn run(&mut self, _: GraphKey, _: u64, _: &dyn Fn() -> Result<Tensor>) -> Result<Tensor> {
        match *self {}
    }
}

pub enum DeviceSpans {}

impl DeviceSpans {
    pub fn new(_: &[Span], _: usize, staging: &mut Staging) -> Result<Self> {
        match *staging {}
    }

    pub fn graph_key(&self) -> Option<Vec<usize>> {
        match *self {}
    }
}

pub enum DeviceTicket {}

impl DeviceTicket {
    pub fn new(_: &CudaDevice, _: &[Option<WeightDeltas>]) -> Result<Self> {
        missing()
    }

    pub fn nonzeros(&self) -> usize {
        match *self {}
    }

    pub fn weights(&self) -> usize {
        match *self {}
    }

    pub fn shape(&self, _: usize) -> Option<[usize; 2]> {
        match *self {}
    }

    pub fn bytes(&self) -> usize {
        match *self {}
    }

    pub fn bytes_for(_: &WeightDeltas) -> usize {
        0
    }
}

pub struct DeviceSegments<'a> {
    never: Infallible,
    tickets: PhantomData<&'a DeviceTicket>,
}

impl<'a> DeviceSegments<'a> {
    pub fn new(_: &[OverlayRows<'a>], _: usize, staging: &mut Staging) -> Result<Self> {
        match *staging {}
    }

    pub fn graph_key(&self) -> Option<[usize; 3]> {
        match self.never {}
    }
}

pub enum DeviceSaved {}

#[derive(Debug)]
pub enum DevicePattern {}

impl DevicePattern {
    pub fn new(_: &CudaDevice, _: &Pattern) -> Result<Self> {
        missing()
    }
}

pub fn silu_mul(_: Input) -> Result<Output> {
    missing()
}

pub fn silu_mul_backward(_: Input, _: Input) -> Result<Output> {
    missing()
}

pub fn takes_heads(_: usize, _: usize) -> bool {
    false
}

pub fn attention(_: [Input; 3], _: &Spans, _: usize, _: f32) -> Result<Output> {
    missing()
}

pub fn bias_add(_: InOut, _: Input) -> Result<()> {
    missing()
}

pub fn download(_: &Tensor) -> Result<Tensor> {
    missing()
}

pub fn gather_rows(_: Input, ids: &Indices) -> Result<Output> {
    match *ids.on_gpu()? {}
}

pub fn kv_write(_: InOut, _: Input, slots: &Indices) -> Result<()> {
    match *slots.on_gpu()? {}
}

pub fn linear(_: Input, _: Input, _: bool) -> Result<Output> {
    missing()
}

pub fn residual_add(_: InOut, _: Input) -> Result<()> {
    missing()
}

pub fn rms_norm(_: Input, _: Input, _: f32) -> Result<Output> {
    missing()
}

pub fn add_rms_norm(_: InOut, _: Input, _: Input, _: f32) -> Result<CudaStorage> {
    missing()
}

pub fn rms_norm_backward(_: Input, _: Input, _: Input, _: f32) -> Result<Output> {
    missing()
}

pub fn rms_norm_weight_gradient(_: &Tensor, _: &Tensor, _: f32) -> Result<Tensor> {
    missing()
}

pub fn rotate(_: InOut, _: [Input; 2], _: Option<&HeadNorms>) -> Result<()> {
    missing()
}

pub fn sample(_: &Tensor, _: &[(u32, SamplingMethod)]) -> Result<Vec<Option<u32>>> {
    missing()
}

pub fn apply(ticket: &DeviceTicket, _: &[Tensor], _: f32) -> Result<DeviceSaved> {
    match *ticket {}
}

pub fn revert(ticket: &DeviceTicket, _: &[Tensor], _: &DeviceSaved) -> Result<()> {
    match *ticket {}
}

pub fn overlay(_: InOut, _: Input, _: &Overlays, _: usize) -> Result<CudaStorage> {
    missing()
}

pub fn clear(_: InOut) -> Result<()> {
    missing()
}

pub fn accumulate(_: InOut, _: Input, _: bool) -> Result<()> {
    missing()
}

pub fn accumulate_rows(_: InOut, _: &[u32], _: Input) -> Result<()> {
    missing()
}

pub fn add_weight_gradient(_: InOut, _: Input, _: Input) -> Result<()> {
    missing()
}

pub fn causal_attention(_: [&Tensor; 3], _: &CausalOptions) -> Result<(Tensor, Tensor)> {
    missing()
}

pub fn causal_attention_backward(
    _: [&Tensor; 3],
    _: &Tensor,
    _: &Tensor,
    _: &Tensor,
    _: &CausalOptions,
) -> Result<[Tensor; 3]> {
    missing()
}

pub fn nll(_: &Tensor, _: &[u32]) -> Result<Vec<f32>> {
    missing()
}

pub fn cross_entropy(_: InOut, _: &[u32], _: f32) -> Result<Vec<f32>> {
    missing()
}

pub fn update_mean(_: InOut, _: Input, _: Power, _: f32, _: f32) -> Result<()> {
    missing()
}

pub fn optimizer_step(_: InOut, _: Input, _: Input, _: &Step) -> Result<()> {
    missing()
}

pub fn sum_of_squares(_: &Tensor) -> Result<f64> {
    missing()
}

pub fn gather_positions(_: Input, pattern: &Pattern) -> Result<Vec<f32>> {
    match *pattern.on_gpu(&CudaDevice)? {}
}

pub fn set_positions(_: InOut, _: Input, pattern: &Pattern) -> Result<()> {
    match *pattern.on_gpu(&CudaDevice)? {}
}

pub fn add_sddmm_gradient(_: InOut, pattern: &Pattern, _: Input, _: Input) -> Result<()> {
    match *pattern.on_gpu(&CudaDevice)? {}
}
