//! The C interface of [librmsnorm](https://docs.rs/rmsnorm): constants, structs and functions as
//! the header `rmsnorm.h` has them, which is the manual. The crate `rmsnorm` is the safe interface.
//!
//! The library is linked, or, with the feature `dynamic-loading`, opened when it is first needed;
//! README.md says how it is found. [`Library`] calls it either way.
#![no_std]
#![allow(non_camel_case_types)]

extern crate alloc;
#[cfg(feature = "dynamic-loading")]
extern crate std;

use core::mem::{size_of, zeroed};

#[cfg(feature = "dynamic-loading")]
#[macro_use]
mod loaded;
#[cfg(not(feature = "dynamic-loading"))]
#[macro_use]
mod linked;
mod error;

mod abi;

pub use abi::*;
pub use error::LoadError;

macro_rules! sized {
    ($($name:ident),*) => {$(
        impl $name {
            /// All zero but for `struct_size`: nothing optional is there.
            pub const fn new() -> Self {
                // SAFETY: integers, floats, raw pointers and optional functions, all of which may
                // be zero.
                let mut new: Self = unsafe { zeroed() };
                new.struct_size = size_of::<Self>();
                new
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    )*};
}
sized!(
    rmsnorm_context_options_t,
    rmsnorm_device_info_t,
    rmsnorm_forward_params_t,
    rmsnorm_backward_params_t,
    rmsnorm_glu_forward_params_t,
    rmsnorm_glu_backward_params_t
);

macro_rules! absent {
    ($($name:ident),*) => {$(
        impl $name {
            /// An absent tensor.
            pub const fn new() -> Self {
                // SAFETY: integers and a raw pointer.
                unsafe { zeroed() }
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    )*};
}
absent!(rmsnorm_tensor_t, rmsnorm_input_t);
