//! Choice of the device and its dtypes.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use super::config::ModelConfig;
use super::error::ModelError;
use crate::kernels::cuda;

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
            "f32" | "fp32" | "float" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "fp16" | "half" | "float16" => Ok(Self::F16),
            _ => Err(format!(
                "{text:?} is not a dtype: f32 (float32, float), bf16 (bfloat16) or \
                 f16 (float16, fp16, half)"
            )),
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

/// Device that a base is resident on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first GPU if this build has CUDA kernels and the machine has a GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by its ordinal.
    Cuda(usize),
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |number: &str| number.parse().ok();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ if text.starts_with("cuda") && !cuda::AVAILABLE => {
                Err(format!("{text:?}: {NO_CUDA}"))
            }
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
    /// The same device, but the CPU for [`Self::Auto`].
    pub fn or_cpu(self) -> Self {
        match self {
            Self::Auto => Self::Cpu,
            named => named,
        }
    }

    /// Whether a GPU is named.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// Opens the device.
    ///
    /// # Errors
    /// A GPU is named, and the machine has none or this build has no CUDA kernels.
    fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => open_gpu(number).map_err(|reason| ModelError::Device {
                device: self.to_string(),
                reason,
            }),
            Self::Auto if !cuda::AVAILABLE => Ok(Device::Cpu),
            Self::Auto => Ok(open_gpu(0).unwrap_or_else(|reason| {
                tracing::warn!("the base is loaded on the CPU: {reason}");
                Device::Cpu
            })),
        }
    }
}

const NO_CUDA: &str = "this build has no CUDA kernels (cargo build --features cuda)";

/// Opens a GPU.
///
/// # Errors
/// The reason, in one line.
fn open_gpu(number: usize) -> Result<Device, String> {
    if !cuda::AVAILABLE {
        return Err(NO_CUDA.to_owned());
    }
    cuda::open(number).map_err(|error| {
        // The lines after the first are a backtrace.
        let text = error.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    })
}

/// Whether the device has memory apart from the host's.
pub(super) fn has_own_memory(device: &Device) -> bool {
    !device.is_cpu()
}

/// An opened device, with the dtypes that a base uses on it.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    pub device: Device,
    /// Dtype of projection weights and embeddings.
    pub weights: DType,
    /// Dtype of activations, norms and biases; the residual stream is always f32. CPU kernels
    /// compute in f32; GPU kernels multiply operands of the weights' dtype.
    pub activations: DType,
    /// Dtype of keys and values.
    pub cache: DType,
}

impl Placement {
    /// Opens the device for a base of that dtype.
    ///
    /// # Errors
    /// The device cannot be opened.
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

    /// Name of the device.
    pub fn name(&self) -> String {
        match &self.device {
            Device::Cuda(device) => cuda::name(device),
            _ => "the CPU".to_owned(),
        }
    }

    /// Checks that there are kernels for a base's attention heads.
    ///
    /// # Errors
    /// There are none.
    pub fn check_heads(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
        if self.device.is_cuda() && !cuda::takes_heads(dim, group) {
            return Err(ModelError::Heads { dim, group });
        }
        Ok(())
    }

    /// Free memory of the device in bytes; `None` for the CPU.
    pub fn free_memory(&self) -> Option<usize> {
        match &self.device {
            Device::Cuda(device) => cuda::free_memory(device).ok(),
            _ => None,
        }
    }

    /// Checks that a base can stay quantised on the device.
    ///
    /// # Errors
    /// The device is not the CPU.
    pub fn check_keep_quantized(&self) -> Result<(), ModelError> {
        match self.device {
            Device::Cpu => Ok(()),
            _ => Err(ModelError::QuantizedOnGpu),
        }
    }

    /// Checks that the CPU has room for `bytes` bytes of keys and values: they are allocated at
    /// once, and a failed allocation would abort the process.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn check_room(&self, bytes: usize) -> Result<(), ModelError> {
        if let Device::Cpu = self.device {
            let room = Vec::<u8>::new().try_reserve_exact(bytes);
            room.map_err(|_| ModelError::NoMemory { bytes })?;
        }
        Ok(())
    }
}
