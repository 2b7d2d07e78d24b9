//! The only place that picks a device and its dtypes.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

/// The dtype that projection weights, embeddings and KV blocks are resident in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err(format!("{text:?} is not a dtype: f32 or bf16")),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl Dtype {
    pub(super) fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Bytes of one weight.
    pub fn bytes(self) -> usize {
        self.candle().size_in_bytes()
    }
}

/// Where a base is resident: `cpu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    #[default]
    Cpu,
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cpu" => Ok(Self::Cpu),
            _ if text.starts_with("cuda") => {
                Err(format!("{text:?}: this build has no CUDA kernels; use cpu"))
            }
            _ => Err(format!("{text:?} is not a device: cpu")),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// A device with the dtypes that a base uses on it.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    pub device: Device,
    /// Projection weights and embeddings.
    pub weights: DType,
    /// Activations, norms and biases: the kernels of the CPU compute in f32.
    pub activations: DType,
    /// Keys and values.
    pub cache: DType,
}

impl Placement {
    pub fn new(spec: DeviceSpec, dtype: Dtype) -> Self {
        match spec {
            DeviceSpec::Cpu => Self {
                device: Device::Cpu,
                weights: dtype.candle(),
                activations: DType::F32,
                cache: dtype.candle(),
            },
        }
    }
}
