//! Device slices and streams of cudarc.

use std::sync::Arc;

use ::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DriverError};
use rmsnorm_sys as sys;

use crate::call::{Call, Operation};
use crate::tensor::Place;
use crate::view::check_reach;
use crate::{
    Context, Device, DeviceView, DeviceViewMut, Element, Error, Input, Launch, Output, Result,
    Shape,
};

fn place_of(stream: &CudaStream) -> Place {
    Place::Stream(stream.cu_stream() as usize)
}

/// The strides of a slice that holds the shape's elements one after the other.
fn packed(len: usize, shape: Shape) -> Result<[isize; 2]> {
    let [rows, groups, cols] = shape;
    let all = rows.checked_mul(groups).and_then(|count| count.checked_mul(cols));
    if all != Some(len) {
        return Err(Error::shape(format!(
            "a slice of {len} elements does not hold {rows} x {groups} x {cols}"
        )));
    }
    Ok([groups.saturating_mul(cols) as isize, cols as isize])
}

macro_rules! from_slice {
    ($into:ident, $view:ident, $slice:ty, $pointer:ty, $trait:ident, $method:ident) => {
        impl<'a> $into<'a> {
            /// A device slice that holds the elements of a shape one after the other, for a call on
            /// this stream. A vector's shape is `[1, 1, cols]`, rstd's `[rows, groups, 1]`.
            ///
            /// # Errors
            /// The slice has another number of elements.
            pub fn cuda<T: Element, S: $trait<T>>(
                slice: $slice,
                stream: &'a CudaStream,
                shape: Shape,
            ) -> Result<Self> {
                let strides = packed(slice.len(), shape)?;
                Self::cuda_strided(slice, stream, 0, shape, strides)
            }

            /// Any view into a device slice: element (0, 0, 0) is the slice's element `offset`.
            ///
            /// # Errors
            /// An element would lie outside the slice.
            pub fn cuda_strided<T: Element, S: $trait<T>>(
                slice: $slice,
                stream: &'a CudaStream,
                offset: usize,
                shape: Shape,
                strides: [isize; 2],
            ) -> Result<Self> {
                check_reach(slice.len(), offset, shape, strides)?;
                let (start, recorded) = slice.$method(stream);
                let start = start as usize + offset.saturating_mul(size_of::<T>());
                // SAFETY: within the slice, which is borrowed for 'a; what is recorded when the
                // call is dropped keeps it there until the stream has passed the call.
                let view: $view<'a, T> =
                    unsafe { $view::from_raw_parts(start as $pointer, shape, strides) };
                Ok(view.on(place_of(stream), Some(Box::new(recorded))))
            }
        }
    };
}
from_slice!(Input, DeviceView, &'a S, *const T, DevicePtr, device_ptr);
from_slice!(Output, DeviceViewMut, &'a mut S, *mut T, DevicePtrMut, device_ptr_mut);

pub(crate) fn run_on<O: Operation>(
    call: &mut Call<'_, O>,
    context: &Context,
    stream: &Arc<CudaStream>,
) -> Result<()> {
    if call.place() != place_of(stream) {
        return Err(Error::new(
            sys::RMSNORM_ERROR_DEVICE,
            format!("{} was not given for this stream (Input::cuda)", O::MAIN),
        ));
    }
    let ordinal = stream.context().ordinal();
    if i32::try_from(ordinal).map(Device::Cuda) != Ok(context.device()) {
        return Err(Error::new(
            sys::RMSNORM_ERROR_DEVICE,
            format!(
                "the stream is of CUDA device {ordinal}, the context is {:?}",
                context.device()
            ),
        ));
    }
    let size = call.workspace_size(context)?;
    let mut launch = Launch { stream: stream.cu_stream().cast(), ..Launch::default() };
    if size == 0 {
        // SAFETY: every tensor's memory is borrowed, and was given for this stream.
        return unsafe { call.launch(context, &launch) };
    }
    // SAFETY: a workspace's contents are undefined before and after.
    let mut workspace = unsafe { stream.alloc::<u8>(size) }.map_err(out_of_memory)?;
    let (start, _recorded) = workspace.device_ptr_mut(stream);
    launch.workspace = start as usize as *mut _;
    launch.workspace_size = size;
    // SAFETY: as above; the workspace is freed in the stream, behind the call.
    unsafe { call.launch(context, &launch) }
}

fn out_of_memory(error: DriverError) -> Error {
    Error::new(sys::RMSNORM_ERROR_OUT_OF_MEMORY, format!("no memory for a workspace: {error}"))
}
