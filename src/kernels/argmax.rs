//! The likeliest token of each row.

use candle_core::{Result, Storage, Tensor};

use super::element::elements;
use super::parallel::{Scattered, for_each_range};

/// The greatest finite logit of each row `[rows, vocab]` (f32), the first among equals; `None` where a row has none.
/// Where the logits are on a GPU, the tokens alone are copied from it.
pub fn argmax(logits: &Tensor) -> Result<Vec<Option<u32>>> {
    let (rows, vocabulary) = logits.dims2()?;
    let (storage, layout) = logits.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let logits = elements::<f32>(storage, layout)?;
            let mut best = vec![None; rows];
            let out = Scattered::new(&mut best);
            for_each_range(rows, 1, |range| {
                for row in range {
                    let best = greatest(&logits[row * vocabulary..(row + 1) * vocabulary]);
                    // SAFETY: each row is one thread's.
                    unsafe { out.write(row, best) };
                }
            });
            Ok(best)
        }
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => on_gpu(storage, layout, rows, vocabulary),
        _ => candle_core::bail!("no argmax on this device"),
    }
}

/// The greatest finite logit of a row, the first among equals; `None` where there is none.
pub fn greatest(logits: &[f32]) -> Option<u32> {
    let finite = |logit: f32| {
        if logit.is_finite() {
            logit
        } else {
            f32::NEG_INFINITY
        }
    };
    let most = logits
        .iter()
        .fold(f32::NEG_INFINITY, |most, &x| most.max(finite(x)));
    let at = logits.iter().position(|&x| x == most)?;
    (most > f32::NEG_INFINITY).then_some(at as u32)
}

#[cfg(feature = "cuda")]
fn on_gpu(
    logits: &candle_core::CudaStorage,
    layout: &candle_core::Layout,
    rows: usize,
    vocabulary: usize,
) -> Result<Vec<Option<u32>>> {
    use super::cuda::{Launch, View, ViewMut, alloc, download};
    use candle_core::DType;
    let device = &logits.device;
    let mut tokens = alloc(device, DType::U32, rows)?;
    let launch = Launch::single(device, "argmax")?
        .write(&ViewMut::new(
            &mut tokens,
            &candle_core::Layout::contiguous(rows),
        )?)
        .read(&View::new(logits, layout)?.of(DType::F32)?)
        .size(vocabulary)?;
    // SAFETY: argmax's arguments; a token for each row of that vocabulary.
    unsafe { launch.run_rows(rows) }?;
    let tokens = download::<u32>(&tokens, &candle_core::Layout::contiguous(rows))?;
    Ok(tokens
        .into_iter()
        .map(|token| (token != u32::MAX).then_some(token))
        .collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_first_of_the_greatest_finite_logits_is_taken() {
        let rows = [
            [1.0, 3.0, 2.0, 3.0],
            [f32::NAN, f32::INFINITY, -5.0, f32::NEG_INFINITY],
            [f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY],
        ];
        let best = argmax(&Tensor::new(&rows, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(best, [Some(1), Some(2), None]);
    }
}
