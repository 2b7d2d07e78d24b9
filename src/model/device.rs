//! The only place that picks a device and its dtypes.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use super::config::ModelConfig;
use super::error::ModelError;

/// The dtype that projection weights, embeddings and KV blocks are resident in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(format!("{text:?} is not a dtype: f32, bf16 or f16")),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl Dtype {
    pub(super) fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Bytes of one weight.
    pub fn bytes(self) -> usize {
        self.candle().size_in_bytes()
    }
}

/// Where a base is resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first GPU where this build has kernels for one and the machine has one, or the CPU.
    #[default]
    Auto,
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |number: &str| number.parse().ok();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ if text.starts_with("cuda") && !HAS_CUDA => Err(format!("{text:?}: {NO_CUDA}")),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let gpu = text.strip_prefix("cuda:").and_then(number);
                let gpu = gpu.map(Self::Cuda);
                gpu.ok_or_else(|| format!("{text:?} is not a device: auto, cpu, cuda or cuda:N"))
            }
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceSpec {
    /// The CPU where the device is left open.
    pub fn or_cpu(self) -> Self {
        match self {
            Self::Auto => Self::Cpu,
            named => named,
        }
    }

    /// Whether a GPU is asked for by name.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// Opens the device.
    ///
    /// # Errors
    /// A GPU is asked for and there is none, or this build knows none.
    fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => open_gpu(number).map_err(|reason| ModelError::Device {
                device: self.to_string(),
                reason,
            }),
            Self::Auto if !HAS_CUDA => Ok(Device::Cpu),
            Self::Auto => Ok(open_gpu(0).unwrap_or_else(|reason| {
                tracing::warn!("the base goes to the CPU: {reason}");
                Device::Cpu
            })),
        }
    }
}

const HAS_CUDA: bool = cfg!(feature = "cuda");
const NO_CUDA: &str = "this build has no CUDA kernels (cargo build --features cuda)";

/// Opens a GPU, or says in a line why not.
#[cfg(feature = "cuda")]
fn open_gpu(number: usize) -> Result<Device, String> {
    let first_line = |error: candle_core::Error| {
        // The rest is a backtrace.
        let text = error.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    };
    crate::kernels::cuda::open(number).map_err(first_line)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: usize) -> Result<Device, String> {
    Err(NO_CUDA.to_owned())
}

/// A device with the dtypes that a base uses on it.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    pub device: Device,
    /// Projection weights and embeddings.
    pub weights: DType,
    /// Activations, norms and biases (but for the residual stream, which is in f32): the kernels of the CPU
    /// compute in f32, those of a GPU multiply what has the weights' dtype.
    pub activations: DType,
    /// Keys and values.
    pub cache: DType,
}

impl Placement {
    /// Opens the device for a base of that dtype.
    ///
    /// # Errors
    /// As [`DeviceSpec`]'s device cannot be opened.
    pub fn new(spec: DeviceSpec, dtype: Dtype) -> Result<Self, ModelError> {
        let device = spec.open()?;
        let activations = match &device {
            Device::Cpu => DType::F32,
            _ => dtype.candle(),
        };
        Ok(Self {
            device,
            weights: dtype.candle(),
            activations,
            cache: dtype.candle(),
        })
    }

    /// What the device is called.
    pub fn name(&self) -> String {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => crate::kernels::cuda::name(device),
            _ => "the CPU".to_owned(),
        }
    }

    /// Checks that there are kernels for a base's heads.
    ///
    /// # Errors
    /// If there are none.
    pub fn check_heads(&self, config: &ModelConfig) -> Result<(), ModelError> {
        match self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => {
                let group = config.heads / config.kv_heads;
                let takes = crate::kernels::cuda::takes_heads(config.head_dim, group);
                takes.then_some(()).ok_or(ModelError::Heads {
                    dim: config.head_dim,
                    group,
                })
            }
            _ => {
                let _ = config;
                Ok(())
            }
        }
    }

    /// Bytes of memory that are free on the device, if it is not the CPU.
    pub fn free_memory(&self) -> Option<usize> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => crate::kernels::cuda::free_memory(device).ok(),
            _ => None,
        }
    }

    /// Checks that a base can be kept quantised there.
    ///
    /// # Errors
    /// If it is not the CPU.
    pub fn check_keep_quantized(&self) -> Result<(), ModelError> {
        match self.device {
            Device::Cpu => Ok(()),
            _ => Err(ModelError::QuantizedOnGpu),
        }
    }

    /// Checks that there is room for so many bytes of keys and values, which are taken at once: where an
    /// allocation that fails would end the process.
    ///
    /// # Errors
    /// If there is not.
    pub fn check_room(&self, bytes: usize) -> Result<(), ModelError> {
        if let Device::Cpu = self.device {
            let room = Vec::<u8>::new().try_reserve_exact(bytes);
            room.map_err(|_| ModelError::NoMemory { bytes })?;
        }
        Ok(())
    }
}
