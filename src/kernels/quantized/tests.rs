use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::kernels::digest::hash_values;
use crate::kernels::linear::linear as dense_linear;

const KINDS: [GgmlDType; 11] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

fn random(shape: (usize, usize)) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

/// A random weight, and its values by candle.
fn weight(kind: GgmlDType, shape: (usize, usize)) -> (QuantizedWeight, Tensor) {
    let stored = QTensor::quantize(&random(shape), kind).unwrap();
    let values = stored.dequantize(&Device::Cpu).unwrap();
    (QuantizedWeight::new(&stored, 0..shape.0).unwrap(), values)
}

fn bits(values: &Tensor) -> Vec<u32> {
    let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn all(weight: &QuantizedWeight) -> Tensor {
    let ids: Vec<u32> = (0..weight.rows() as u32).collect();
    weight.gather_rows(&ids).unwrap()
}

/// Random bytes, because a file may hold any, and a quantiser writes few of the possible scales.
#[test]
fn values_equal_candles_for_any_bytes() {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for kind in KINDS {
        let (rows, inner) = (8, 8 * kind.block_size());
        let bytes: Vec<u8> = (0..rows * 8 * kind.type_size()).map(|_| byte()).collect();
        let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind).unwrap();
        let stored = QTensor::new(storage, (rows, inner)).unwrap();
        let want = stored.dequantize(&Device::Cpu).unwrap();
        let got = all(&QuantizedWeight::new(&stored, 0..rows).unwrap());
        let finite = |values: &Tensor| -> Vec<Option<u32>> {
            let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bits = |value: f32| (!value.is_nan()).then_some(value.to_bits());
            values.into_iter().map(bits).collect()
        };
        assert_eq!(finite(&got), finite(&want), "{kind:?}");
    }
}

#[test]
fn halves_are_exact() {
    let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut values = vec![0f32; 1 << 16];
    widener(GgmlDType::F16).unwrap()(&stored, &mut values);
    for (bits, value) in (0..=u16::MAX).zip(values) {
        let want = half::f16::from_bits(bits).to_f32();
        assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn products_equal_those_of_the_dense_weight_in_any_batch(
        rows in 1usize..40, blocks in 1usize..4, outs in prop::array::uniform3(1usize..30),
        kinds in prop::array::uniform3(prop::sample::select(KINDS.to_vec())),
    ) {
        let inner = 256 * blocks;
        let parts = [0, 1, 2].map(|i| weight(kinds[i], (outs[i], inner)));
        let fused = QuantizedWeight::cat(&parts.each_ref().map(|part| part.0.clone())).unwrap();
        let values = Tensor::cat(&parts.each_ref().map(|part| &part.1), 0).unwrap();
        let x = random((rows, inner));
        let bias = Tensor::randn(0f32, 1., values.dim(0).unwrap(), &Device::Cpu).unwrap();
        let y = linear(&x, &fused, Some(&bias)).unwrap();
        prop_assert_eq!(bits(&y), bits(&dense_linear(&x, &values, Some(&bias)).unwrap()));
        for row in 0..rows {
            let alone = linear(&x.narrow(0, row, 1).unwrap(), &fused, Some(&bias)).unwrap();
            prop_assert_eq!(bits(&alone), bits(&y.narrow(0, row, 1).unwrap()));
        }
        // The digests too, although tiles end within parts.
        let (mut quantized, mut dense) = (Sha256::new(), Sha256::new());
        fused.hash_values(&mut quantized);
        hash_values(&mut dense, &values).unwrap();
        prop_assert_eq!(quantized.finalize(), dense.finalize());
    }
}

#[test]
fn products_of_many_rows_equal_those_of_the_dense_weight() {
    let (quantized, values) = weight(GgmlDType::Q4_1, (48, 64));
    // Enough rows for the dense weight to be multiplied by outer products.
    let x = random((130, 64));
    let y = linear(&x, &quantized, None).unwrap();
    assert_eq!(bits(&y), bits(&dense_linear(&x, &values, None).unwrap()));
}

#[test]
fn rows_are_reordered() {
    let stored = QTensor::quantize(&random((4, 64)), GgmlDType::Q4_1).unwrap();
    let reordered = QuantizedWeight::new(&stored, [2, 0, 3, 1].into_iter()).unwrap();
    let values = stored.dequantize(&Device::Cpu).unwrap();
    let order = Tensor::new(&[2u32, 0, 3, 1], &Device::Cpu).unwrap();
    assert_eq!(
        bits(&all(&reordered)),
        bits(&values.index_select(&order, 0).unwrap())
    );
    let last = reordered.gather_rows(&[3, 3]).unwrap();
    assert_eq!(last.dims(), [2, 64]);
    assert_eq!(
        bits(&last.narrow(0, 1, 1).unwrap()),
        bits(&values.narrow(0, 1, 1).unwrap())
    );
    assert_eq!(reordered.bytes(), 4 * 2 * 20);
}

#[test]
fn shapes_and_kinds_that_do_not_fit_are_refused() {
    let (narrow, _) = weight(GgmlDType::Q8_0, (2, 32));
    let (weight, _) = weight(GgmlDType::Q8_0, (2, 64));
    let x = Tensor::zeros((1, 32), DType::F32, &Device::Cpu).unwrap();
    let error = linear(&x, &weight, None).unwrap_err().to_string();
    assert!(
        error.contains("[1, 32]") && error.contains("[2, 64]"),
        "{error}"
    );
    let error = weight.gather_rows(&[2]).unwrap_err().to_string();
    assert!(error.contains("row 2"), "{error}");
    assert!(QuantizedWeight::cat(&[weight, narrow]).is_err());
    let stored = QTensor::quantize(&random((2, 256)), GgmlDType::Q2K).unwrap();
    let error = QuantizedWeight::new(&stored, 0..2).unwrap_err().to_string();
    assert!(error.contains("Q2K") && error.contains("Q4_K"), "{error}");
    assert!(QuantizedWeight::new(&stored, 0..1).is_err());
}
