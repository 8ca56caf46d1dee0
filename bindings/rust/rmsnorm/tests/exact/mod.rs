//! The formulas in f64, which is exact enough for results in fewer bits: its own errors are 2^-40
//! of a result's ulp and less.
#![allow(dead_code)] // each test uses its part

pub mod glu;

use half::{bf16, f16};
use rmsnorm::{Dtype, Element};

pub trait Real: Element + Default {
    fn wide(self) -> f64;
    fn rounded(value: f64) -> Self;
}

macro_rules! reals {
    ($($type:ty: $wide:expr, $rounded:expr);*) => {$(
        impl Real for $type {
            fn wide(self) -> f64 {
                $wide(self)
            }
            fn rounded(value: f64) -> Self {
                $rounded(value)
            }
        }
    )*};
}
reals!(f32: f64::from, |value| value as f32; f16: f16::to_f64, f16::from_f64;
       bf16: bf16::to_f64, bf16::from_f64; f64: |value| value, |value| value);

/// The same numbers in every run, between -3 and 3.
pub fn numbers<T: Real>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1 << 24) as f64
    };
    (0..count).map(|_| T::rounded((next() + next() + next() - 1.5) * 2.0)).collect()
}

pub fn wide<T: Real>(elements: &[T]) -> Vec<f64> {
    elements.iter().map(|element| element.wide()).collect()
}

pub fn ulp(value: f64, dtype: Dtype) -> f64 {
    let (digits, least) = match dtype {
        Dtype::F16 => (11, -24),
        Dtype::Bf16 => (8, -133),
        Dtype::F64 => (53, -1074),
        _ => (24, -149),
    };
    let exponent =
        if value == 0.0 { least } else { value.abs().log2().floor() as i32 + 1 - digits };
    2f64.powi(exponent.max(least))
}

/// One row of y, and rstd.
pub fn forward(h: &[f64], weight: &[f64], eps: f64) -> (Vec<f64>, f64) {
    let mean = h.iter().map(|value| value * value).sum::<f64>() / h.len() as f64;
    let rstd = 1.0 / (mean + eps).sqrt();
    (h.iter().zip(weight).map(|(h, w)| h * rstd * w).collect(), rstd)
}

/// A gradient's element: its value, and the absolute terms that it sums.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gradient {
    pub value: f64,
    pub terms: f64,
}

/// Within so many ulps and this share of the terms.
pub fn expect_near(what: &str, found: f64, exact: Gradient, dtype: Dtype, ulps: f64, share: f64) {
    let error = (found - exact.value).abs();
    let allowed = ulps * ulp(exact.value, dtype) + share * exact.terms;
    assert!(error <= allowed * (1.0 + 1e-9), "{what} is {found}, exactly {exact:?}");
}

/// One row of dx.
pub fn dx(dy: &[f64], x: &[f64], weight: &[f64], rstd: f64, more: &[f64]) -> Vec<Gradient> {
    let cols = x.len() as f64;
    let products: Vec<f64> = (0..x.len()).map(|i| weight[i] * dy[i] * (x[i] * rstd)).collect();
    let mean = products.iter().sum::<f64>() / cols;
    let terms = products.iter().map(|product| product.abs()).sum::<f64>() / cols;
    let element = |i: usize| {
        let (xhat, w_dy) = (x[i] * rstd, weight[i] * dy[i]);
        Gradient {
            value: rstd * (w_dy - xhat * mean) + more[i],
            terms: rstd * (w_dy.abs() + xhat.abs() * terms) + more[i].abs(),
        }
    };
    (0..x.len()).map(element).collect()
}
