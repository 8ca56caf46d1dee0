//! What a call takes: views without their element types.

use std::ffi::c_void;
use std::marker::PhantomData;

use rmsnorm_sys as sys;

use crate::view::{Shape, View, ViewMut};
use crate::Element;

/// Where a tensor's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Host,
    /// A device's, through a raw pointer.
    Device,
    /// A device's, to be used on this stream.
    #[cfg(feature = "cudarc")]
    Stream(usize),
}

/// Something to be dropped after the call.
pub(crate) trait Keep {}
#[cfg(feature = "cudarc")]
impl<T> Keep for T {}

/// A tensor that a call reads: a [`View`], a slice (one row), or a [`DeviceView`].
pub struct Input<'a> {
    pub(crate) tensor: sys::rmsnorm_input_t,
    pub(crate) shape: Shape,
    pub(crate) place: Place,
    pub(crate) keep: Option<Box<dyn Keep + 'a>>,
    pub(crate) memory: PhantomData<&'a ()>,
}

/// A tensor that a call writes: a [`ViewMut`], a slice (one row), or a [`DeviceViewMut`].
pub struct Output<'a> {
    pub(crate) tensor: sys::rmsnorm_tensor_t,
    pub(crate) shape: Shape,
    pub(crate) place: Place,
    pub(crate) keep: Option<Box<dyn Keep + 'a>>,
    pub(crate) memory: PhantomData<&'a mut ()>,
}

impl Output<'_> {
    /// The same memory, read too: where a call works in place.
    pub(crate) fn tensor_as_input(&self) -> sys::rmsnorm_input_t {
        sys::rmsnorm_input_t {
            data: self.tensor.data,
            row_stride: self.tensor.row_stride,
            group_stride: self.tensor.group_stride,
            dtype: self.tensor.dtype,
            reserved: 0,
        }
    }
}

macro_rules! from_host {
    ($into:ident, $tensor:ident, $view:ident, [$($reference:ty, [$($generic:tt)*]);*]) => {
        impl<'a, T: Element> From<$view<'a, T>> for $into<'a> {
            fn from(view: $view<'a, T>) -> Self {
                $into {
                    tensor: sys::$tensor {
                        data: view.start.cast(),
                        row_stride: view.strides[0] as i64,
                        group_stride: view.strides[1] as i64,
                        dtype: T::DTYPE.code(),
                        reserved: 0,
                    },
                    shape: view.shape,
                    place: Place::Host,
                    keep: None,
                    memory: PhantomData,
                }
            }
        }
        $(
            impl<'a, T: Element $($generic)*> From<$reference> for $into<'a> {
                fn from(data: $reference) -> Self {
                    $view::from(data).into()
                }
            }
        )*
    };
}
from_host!(
    Input,
    rmsnorm_input_t,
    View,
    [&'a [T], []; &'a Vec<T>, []; &'a [T; N], [, const N: usize]]
);
from_host!(
    Output,
    rmsnorm_tensor_t,
    ViewMut,
    [&'a mut [T], []; &'a mut Vec<T>, []; &'a mut [T; N], [, const N: usize]]
);

// ---- A device's memory ---------------------------------------------------------------------------

macro_rules! device_view {
    ($view:ident, $into:ident, $tensor:ident, $pointer:ty, $reference:ty, $what:literal) => {
        #[doc = concat!("Memory of a CUDA device that a call ", $what, ", by its address.")]
        #[derive(Debug)]
        pub struct $view<'a, T> {
            start: $pointer,
            shape: Shape,
            strides: [isize; 2],
            memory: PhantomData<$reference>,
        }

        impl<'a, T: Element> $view<'a, T> {
            /// `start` is the address of element (0, 0, 0) on the device.
            ///
            /// # Safety
            /// The memory of every element is there for `'a` and until the stream of every call
            /// with this view has passed that call, and no other work uses it meanwhile in a way
            /// that such a call must not meet.
            pub unsafe fn from_raw_parts(
                start: $pointer,
                shape: Shape,
                strides: [isize; 2],
            ) -> Self {
                $view { start, shape, strides, memory: PhantomData }
            }

            pub(crate) fn on(self, place: Place, keep: Option<Box<dyn Keep + 'a>>) -> $into<'a> {
                $into {
                    tensor: sys::$tensor {
                        data: self.start.cast(),
                        row_stride: self.strides[0] as i64,
                        group_stride: self.strides[1] as i64,
                        dtype: T::DTYPE.code(),
                        reserved: 0,
                    },
                    shape: self.shape,
                    place,
                    keep,
                    memory: PhantomData,
                }
            }
        }

        impl<'a, T: Element> From<$view<'a, T>> for $into<'a> {
            fn from(view: $view<'a, T>) -> Self {
                view.on(Place::Device, None)
            }
        }
    };
}
device_view!(DeviceView, Input, rmsnorm_input_t, *const T, &'a [T], "reads");
device_view!(DeviceViewMut, Output, rmsnorm_tensor_t, *mut T, &'a mut [T], "writes");

/// A CUDA stream and the workspace of the calls on it: what `launch` takes. The default is the
/// legacy default stream, without a workspace.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// A `cudaStream_t` (or `CUstream`) of the context's device.
    pub stream: *mut c_void,
    /// Device memory of `workspace_size` bytes; NULL if that is 0.
    pub workspace: *mut c_void,
    /// At least what the call's `workspace_size` tells.
    pub workspace_size: usize,
}

impl Default for Launch {
    fn default() -> Self {
        Launch { stream: std::ptr::null_mut(), workspace: std::ptr::null_mut(), workspace_size: 0 }
    }
}
