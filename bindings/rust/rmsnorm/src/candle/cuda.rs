//! CUDA storage, on candle's own stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CudaDevice, CudaStorage, Layout, Result};
use cudarc::driver::CudaStream;

use super::{failed, strides_of, Scalars};
use crate::view::lay_out;
use crate::{Backward, Context, Forward, Input, Output, Shape};

pub(super) fn forward(
    scalars: Scalars,
    [(x, x_layout), (weight, weight_layout)]: [(&CudaStorage, &Layout); 2],
) -> Result<CudaStorage> {
    let stream = x.device().cuda_stream();
    let mut y = new_like(x, x_layout.shape().elem_count())?;
    Forward::new(read(x, x_layout, &stream)?, write(&mut y, x_layout, &stream)?)
        .weight(read(weight, weight_layout, &stream)?)
        .eps(scalars.eps)
        .weight_offset(scalars.weight_offset)
        .run_on(&*context(&stream)?, &stream)
        .map_err(failed)?;
    Ok(y)
}

/// dx and dweight.
pub(super) fn backward(
    scalars: Scalars,
    [(dy, dy_layout), (x, x_layout), (weight, weight_layout)]: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, CudaStorage)> {
    let stream = x.device().cuda_stream();
    let mut dx = new_like(x, x_layout.shape().elem_count())?;
    let mut dweight = new_like(weight, weight_layout.shape().elem_count())?;
    Backward::new(read(dy, dy_layout, &stream)?, read(x, x_layout, &stream)?)
        .weight(read(weight, weight_layout, &stream)?)
        .dx(write(&mut dx, x_layout, &stream)?)
        .dweight(write(&mut dweight, weight_layout, &stream)?)
        .eps(scalars.eps)
        .weight_offset(scalars.weight_offset)
        .run_on(&*context(&stream)?, &stream)
        .map_err(failed)?;
    Ok((dx, dweight))
}

/// The context of a device, made once.
fn context(stream: &CudaStream) -> Result<Arc<Context>> {
    static CONTEXTS: OnceLock<Mutex<HashMap<i32, Arc<Context>>>> = OnceLock::new();
    let ordinal = stream.context().ordinal() as i32;
    let mut contexts =
        CONTEXTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = contexts.get(&ordinal) {
        return Ok(context.clone());
    }
    let context = Arc::new(Context::cuda(ordinal).map_err(failed)?);
    contexts.insert(ordinal, context.clone());
    Ok(context)
}

macro_rules! each {
    ($storage:expr, $slice:ident => $body:expr) => {
        match $storage {
            CudaStorageSlice::F32($slice) => $body,
            CudaStorageSlice::F16($slice) => $body,
            CudaStorageSlice::BF16($slice) => $body,
            CudaStorageSlice::F64($slice) => $body,
            _ => candle_core::bail!("rmsnorm knows f32, f16, bf16 and f64 alone"),
        }
    };
}

fn read<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<Input<'a>> {
    let (shape, strides) = lay_out(layout.dims(), &strides_of(layout)).map_err(failed)?;
    let offset = layout.start_offset();
    each!(&storage.slice, slice => {
        Input::cuda_strided(slice, stream, offset, shape, strides).map_err(failed)
    })
}

/// A new, packed result of this shape.
fn write<'a>(
    storage: &'a mut CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<Output<'a>> {
    let shape: Shape = super::view_shape(layout)?;
    each!(&mut storage.slice, slice => Output::cuda(slice, stream, shape).map_err(failed))
}

fn new_like(storage: &CudaStorage, count: usize) -> Result<CudaStorage> {
    let device: CudaDevice = storage.device().clone();
    // SAFETY: whoever asks for these writes every element before anything reads them, in the
    // device's stream.
    let slice = unsafe {
        match &storage.slice {
            CudaStorageSlice::F32(_) => CudaStorageSlice::F32(device.alloc(count)?),
            CudaStorageSlice::F16(_) => CudaStorageSlice::F16(device.alloc(count)?),
            CudaStorageSlice::BF16(_) => CudaStorageSlice::BF16(device.alloc(count)?),
            CudaStorageSlice::F64(_) => CudaStorageSlice::F64(device.alloc(count)?),
            _ => candle_core::bail!("rmsnorm knows f32, f16, bf16 and f64 alone"),
        }
    };
    Ok(CudaStorage { slice, device })
}
