//! The formulas once more, plainly, in f64: what main.rs judges the library by. For elements of at
//! most 24 bits that is exact enough.

use half::{bf16, f16};
use rmsnorm::{Dtype, Element};

/// What cudarc must know of an element's type; nothing, without CUDA.
#[cfg(feature = "cuda")]
pub use crate::cuda::OnDevice;
#[cfg(not(feature = "cuda"))]
pub trait OnDevice {}
#[cfg(not(feature = "cuda"))]
impl<T> OnDevice for T {}

/// An element type of at most 32 bits.
pub trait Real: Element + Default + OnDevice {
    const NAME: &'static str;
    /// NumPy's name of the type in a file; bf16 is stored as u2, which NumPy knows.
    const NPY: &'static str;
    fn wide(self) -> f64;
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! real {
    ($type:ident, $name:literal, $npy:literal, $wide:expr) => {
        impl Real for $type {
            const NAME: &'static str = $name;
            const NPY: &'static str = $npy;
            fn wide(self) -> f64 {
                $wide(self)
            }
            fn from_le(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(bytes);
                $type::from_le_bytes(array)
            }
        }
    };
}
real!(f32, "fp32", "<f4", f64::from);
real!(f16, "fp16", "<f2", f16::to_f64);
real!(bf16, "bf16", "<u2", bf16::to_f64);

pub fn wide<T: Real>(elements: &[T]) -> Vec<f64> {
    elements.iter().map(|element| element.wide()).collect()
}

/// The distance between the neighbours of `value` in a type.
pub fn ulp(value: f64, dtype: Dtype) -> f64 {
    let (digits, least) = match dtype {
        Dtype::F16 => (11, -24),
        Dtype::Bf16 => (8, -133),
        _ => (24, -149),
    };
    if value == 0.0 {
        return 2f64.powi(least);
    }
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1022; // value < 2^exponent
    2f64.powi((exponent - digits).max(least))
}

/// One row of y.
pub fn forward(h: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = h.iter().map(|h| h * h).sum::<f64>() / h.len() as f64;
    let rstd = 1.0 / (mean + eps).sqrt();
    h.iter().zip(weight).map(|(h, weight)| h * rstd * weight).collect()
}

/// What one element of a gradient should be, and the sum of the absolute values of its terms: they
/// can cancel, and rounding errors are relative to them.
#[derive(Clone, Copy, Default)]
pub struct Gradient {
    pub value: f64,
    pub terms: f64,
}

/// One row of dx, by rstd as it was handed to the library.
pub fn dx(dy: &[f64], h: &[f64], weight: &[f64], rstd: f64, dh: &[f64]) -> Vec<Gradient> {
    let cols = h.len() as f64;
    let w_dy: Vec<f64> = weight.iter().zip(dy).map(|(weight, dy)| weight * dy).collect();
    let products = || w_dy.iter().zip(h).map(|(w_dy, h)| w_dy * (h * rstd));
    let mean = products().sum::<f64>() / cols;
    let terms = products().map(f64::abs).sum::<f64>() / cols;
    let element = |((w_dy, h), dh): ((&f64, &f64), &f64)| Gradient {
        value: rstd * (w_dy - h * rstd * mean) + dh,
        terms: rstd * (w_dy.abs() + (h * rstd).abs() * terms) + dh.abs(),
    };
    w_dy.iter().zip(h).zip(dh).map(element).collect()
}
