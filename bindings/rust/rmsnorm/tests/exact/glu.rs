//! Gated activations. Their own errors are some 2^-50 of a value; below 0, where exp magnifies the
//! rounding of its argument, up to 2^-44 at the gates that are tested.
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use rmsnorm::Activation;

use super::Gradient;

extern "C" {
    fn erfc(x: f64) -> f64; // the C library's
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// s(g) and s'(g), where the activation is g * s(g).
fn gate_of(activation: Activation, g: f64) -> (f64, f64) {
    match activation {
        Activation::Silu => (sigmoid(g), sigmoid(g) * sigmoid(-g)),
        Activation::GeluTanh => {
            // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
            let twice = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * 2.0;
            let u2 = twice * g * (1.0 + 0.044715 * g * g);
            let slope = twice * (1.0 + 3.0 * 0.044715 * g * g);
            (sigmoid(u2), sigmoid(u2) * sigmoid(-u2) * slope)
        }
        Activation::GeluErf => {
            // SAFETY: a function of a number.
            let s = unsafe { erfc(-g * FRAC_1_SQRT_2) } / 2.0;
            (s, (-g * g / 2.0).exp() * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0)
        }
        other => panic!("{other:?}"),
    }
}

/// Of one term.
fn product(value: f64) -> Gradient {
    Gradient { value, terms: value.abs() }
}

pub fn y(activation: Activation, gate: f64, up: f64) -> Gradient {
    product(gate * gate_of(activation, gate).0 * up)
}

/// dgate and dup.
pub fn gradients(activation: Activation, dy: f64, gate: f64, up: f64) -> (Gradient, Gradient) {
    let (s, slope) = gate_of(activation, gate);
    let dgate = Gradient {
        value: dy * up * (s + gate * slope),
        terms: (dy * up).abs() * (s + (gate * slope).abs()),
    };
    (dgate, product(dy * gate * s))
}
