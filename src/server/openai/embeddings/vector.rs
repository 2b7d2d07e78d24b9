//! An embedding as the answer writes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// How a vector is cut, scaled and written.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Numbers that are kept, from the first; `None` keeps all.
    pub dimensions: Option<usize>,
    /// Scale to length 1, after the cut.
    pub normalize: bool,
    /// Write the bytes instead of the numbers.
    pub base64: bool,
}

/// An embedding in wire format.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Written {
    Numbers(Vec<f32>),
    /// The numbers as little-endian f32, in base64.
    Base64(String),
}

impl Form {
    /// Cuts, scales and writes a vector.
    pub fn write(&self, mut vector: Vec<f32>) -> Written {
        vector.truncate(self.dimensions.unwrap_or(usize::MAX));
        if self.normalize {
            normalize(&mut vector);
        }
        if !self.base64 {
            return Written::Numbers(vector);
        }
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        Written::Base64(STANDARD.encode(bytes))
    }
}

/// Scales a vector to length 1, unless it is zero.
fn normalize(vector: &mut [f32]) {
    let squares = vector.iter().map(|&x| f64::from(x) * f64::from(x));
    let length = squares.sum::<f64>().sqrt();
    if length > 0.0 {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Form = Form {
        dimensions: None,
        normalize: false,
        base64: false,
    };

    #[test]
    fn a_vector_is_scaled_after_it_is_cut() {
        let vector = vec![3.0, 4.0, 12.0];
        assert_eq!(
            PLAIN.write(vector.clone()),
            Written::Numbers(vector.clone())
        );
        let scaled = Form {
            normalize: true,
            dimensions: Some(2),
            ..PLAIN
        };
        assert_eq!(scaled.write(vector), Written::Numbers(vec![0.6, 0.8]));
        assert_eq!(scaled.write(vec![0.0; 3]), Written::Numbers(vec![0.0; 2]));
        // Squares beyond the range of f32.
        let scale = 2f32.powi(100);
        let large = scaled.write(vec![3.0 * scale, 4.0 * scale, 0.0]);
        assert_eq!(large, Written::Numbers(vec![0.6, 0.8]));
    }

    #[test]
    fn base64_holds_little_endian_numbers() {
        let form = Form {
            base64: true,
            ..PLAIN
        };
        let expected = STANDARD.encode([0, 0, 128, 63, 0, 0, 0, 192]);
        assert_eq!(form.write(vec![1.0, -2.0]), Written::Base64(expected));
    }
}
