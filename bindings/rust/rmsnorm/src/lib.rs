#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod backward;
mod call;
mod context;
mod element;
mod error;
mod forward;
mod glu;
mod tensor;
mod view;

#[cfg(feature = "candle")]
pub mod candle;
#[cfg(feature = "cudarc")]
mod cudarc;
#[cfg(feature = "ndarray")]
mod ndarray;

pub use backward::Backward;
pub use context::{build_info, devices, version, Context, ContextOptions, Device, DeviceInfo};
pub use element::{Dtype, Element};
pub use error::{Error, ErrorKind, Result};
pub use forward::{Forward, Rounding};
pub use glu::{Activation, GluBackward, GluForward};
pub use rmsnorm_sys;
pub use tensor::{DeviceView, DeviceViewMut, Input, Launch, Output};
pub use view::{Shape, View, ViewMut};

const DEFAULT_EPS: f64 = 1e-6;
