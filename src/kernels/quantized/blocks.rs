//! Block formats of ggml (`ggml-common.h`, `ggml-quants.c`), and their values.
//!
//! The values equal candle's bit for bit, because the fingerprint of a base is computed from them.

use candle_core::quantized::GgmlDType;

use crate::kernels::cpu::simd::{Arithmetic, Vectorised, dispatch};

/// A function that widens whole blocks to f32.
pub type Widen = fn(bytes: &[u8], values: &mut [f32]);

/// The function that widens blocks of a kind, if the kind is supported.
pub fn widener(kind: GgmlDType) -> Option<Widen> {
    Some(match kind {
        GgmlDType::F32 => |bytes, values| blocks(bytes, values, f32_value),
        GgmlDType::F16 => |bytes, values| blocks(bytes, values, f16_value),
        GgmlDType::BF16 => |bytes, values| blocks(bytes, values, bf16_value),
        GgmlDType::Q4_0 => |bytes, values| blocks(bytes, values, q4_0),
        GgmlDType::Q4_1 => |bytes, values| blocks(bytes, values, q4_1),
        GgmlDType::Q5_0 => |bytes, values| blocks(bytes, values, q5_0),
        GgmlDType::Q5_1 => |bytes, values| blocks(bytes, values, q5_1),
        GgmlDType::Q8_0 => |bytes, values| blocks(bytes, values, q8_0),
        GgmlDType::Q4K => |bytes, values| blocks(bytes, values, q4_k),
        GgmlDType::Q5K => |bytes, values| blocks(bytes, values, q5_k),
        GgmlDType::Q6K => |bytes, values| blocks(bytes, values, q6_k),
        _ => return None,
    })
}

/// Widens each block of `BYTES` bytes into `WEIGHTS` values.
fn blocks<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    values: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    dispatch(Blocks {
        bytes: bytes.as_chunks().0,
        values: values.as_chunks_mut().0,
        widen,
    });
}

struct Blocks<'a, const BYTES: usize, const WEIGHTS: usize, F> {
    bytes: &'a [[u8; BYTES]],
    values: &'a mut [[f32; WEIGHTS]],
    widen: F,
}

impl<const BYTES: usize, const WEIGHTS: usize, F> Vectorised for Blocks<'_, BYTES, WEIGHTS, F>
where
    F: Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
{
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for (block, values) in self.bytes.iter().zip(self.values) {
            (self.widen)(block, values);
        }
    }
}

#[inline(always)]
fn f32_value(block: &[u8; 4], value: &mut [f32; 1]) {
    *value = [f32::from_le_bytes(*block)];
}

#[inline(always)]
fn f16_value(block: &[u8; 2], value: &mut [f32; 1]) {
    *value = [half(block, 0)];
}

#[inline(always)]
fn bf16_value(block: &[u8; 2], value: &mut [f32; 1]) {
    *value = [f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16)];
}

/// 32 weights: a scale, then the first 16 weights in the low four bits of 16 bytes and the others
/// in the high four bits.
#[inline(always)]
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = half(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        values[i] = f32::from((byte & 15) as i8 - 8) * d;
        values[i + 16] = f32::from((byte >> 4) as i8 - 8) * d;
    }
}

/// 32 weights: a scale and a minimum, then the same layout as [`q4_0`].
#[inline(always)]
fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        values[i] = f32::from(byte & 15) * d + m;
        values[i + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// 32 weights: a scale, the fifth bits, then the same layout as [`q4_0`].
#[inline(always)]
fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let (d, fifth) = (half(block, 0), word(block, 2));
    for (i, byte) in block[6..].iter().enumerate() {
        values[i] = f32::from((byte & 15 | bit(fifth, i) << 4) as i8 - 16) * d;
        values[i + 16] = f32::from((byte >> 4 | bit(fifth, i + 16) << 4) as i8 - 16) * d;
    }
}

/// 32 weights: a scale and a minimum, the fifth bits, then the same layout as [`q4_0`].
#[inline(always)]
fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m, fifth) = (half(block, 0), half(block, 2), word(block, 4));
    for (i, byte) in block[8..].iter().enumerate() {
        values[i] = f32::from(byte & 15 | bit(fifth, i) << 4) * d + m;
        values[i + 16] = f32::from(byte >> 4 | bit(fifth, i + 16) << 4) * d + m;
    }
}

/// 32 weights: a scale, then one signed byte per weight.
#[inline(always)]
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, byte) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(*byte as i8) * d;
    }
}

/// 256 weights: a common scale and minimum, a 6-bit scale and minimum per 32 weights, then 32 bytes
/// per 64 weights, low and high bits as in [`q4_0`].
#[inline(always)]
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (scales, _) = block[4..].as_chunks::<12>();
    for (i, values) in values.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let ((d0, m0), (d1, m1)) = (
            k_scale(block, &scales[0], 2 * i),
            k_scale(block, &scales[0], 2 * i + 1),
        );
        for (j, byte) in block[16 + 32 * i..48 + 32 * i].iter().enumerate() {
            values[j] = d0 * f32::from(byte & 15) - m0;
            values[j + 32] = d1 * f32::from(byte >> 4) - m1;
        }
    }
}

/// 256 weights: the layout of [`q4_k`], with the fifth bits before the low four.
#[inline(always)]
fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (scales, _) = block[4..].as_chunks::<12>();
    for (i, values) in values.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let ((d0, m0), (d1, m1)) = (
            k_scale(block, &scales[0], 2 * i),
            k_scale(block, &scales[0], 2 * i + 1),
        );
        for j in 0..32 {
            let (byte, fifth) = (block[48 + 32 * i + j], block[16 + j] >> (2 * i));
            values[j] = d0 * f32::from(byte & 15 | (fifth & 1) << 4) - m0;
            values[j + 32] = d1 * f32::from(byte >> 4 | (fifth >> 1 & 1) << 4) - m1;
        }
    }
}

/// 256 weights: the low four bits, the high two bits, a signed byte of scale per 16 weights, and a
/// common scale.
#[inline(always)]
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let d = half(block, 208);
    for (i, values) in values.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let scale = |j: usize| d * f32::from(block[192 + 8 * i + j] as i8);
        for j in 0..32 {
            let (a, b) = (block[64 * i + j], block[64 * i + 32 + j]);
            let high = block[128 + 32 * i + j];
            let low = [a & 15, b & 15, a >> 4, b >> 4];
            for (k, low) in low.into_iter().enumerate() {
                let weight = (low | (high >> (2 * k) & 3) << 4) as i8 - 32;
                values[32 * k + j] = scale(2 * k + j / 16) * f32::from(weight);
            }
        }
    }
}

/// Scale and minimum of the `i`-th 32 weights of a block that starts with the common ones. They
/// have 6 bits each; the upper bits of the last four are in the bytes of the first four.
#[inline(always)]
fn k_scale<const BYTES: usize>(block: &[u8; BYTES], scales: &[u8; 12], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (scales[i] & 63, scales[i + 4] & 63)
    } else {
        (
            scales[i + 4] & 15 | (scales[i - 4] >> 6) << 4,
            scales[i + 4] >> 4 | (scales[i] >> 6) << 4,
        )
    };
    let (d, m) = (half(block, 0), half(block, 2));
    (d * f32::from(scale), m * f32::from(minimum))
}

/// Bit `i` of `word`.
#[inline(always)]
fn bit(word: u32, i: usize) -> u8 {
    (word >> i) as u8 & 1
}

/// The little-endian u32 at byte `at`.
#[inline(always)]
fn word<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The half-precision number at byte `at`, widened exactly. Free of branches and calls, because
/// there is one per few weights.
#[inline(always)]
fn half<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let (sign, rest) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    // The exponent biases differ by 112; infinities and NaNs keep the largest exponent.
    let finite = (f32::from_bits(rest) * f32::from_bits((112 + 127) << 23)).to_bits();
    let magnitude = if rest < 0x7c00 << 13 {
        finite
    } else {
        rest | 0x7f80_0000
    };
    f32::from_bits(sign | magnitude)
}
