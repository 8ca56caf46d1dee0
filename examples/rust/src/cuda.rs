//! The first CUDA device, through cudarc.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use rmsnorm::{Context, Input, Output};

use crate::exact::Real;
use crate::{backward, forward, fused_add, Norm, Operation, Place, Result, Results};

/// What cudarc can move and zero.
pub trait OnDevice: DeviceRepr + ValidAsZeroBits {}
impl<T: DeviceRepr + ValidAsZeroBits> OnDevice for T {}

pub struct Cuda<T> {
    context: Context,
    stream: Arc<CudaStream>,
    cols: usize,
    x: CudaSlice<T>,
    residual: CudaSlice<T>,
    weight: CudaSlice<T>,
    dy: CudaSlice<T>,
    dh: CudaSlice<T>,
    h: CudaSlice<T>,
    y: CudaSlice<T>,
    dx: CudaSlice<T>,
    rstd: CudaSlice<f32>,
    dweight: CudaSlice<f32>,
}

impl<T: Real> Cuda<T> {
    /// The norm's data, repeated.
    pub fn new(norm: &Norm<T>, tiles: usize) -> Result<Self> {
        let stream = CudaContext::new(0)?.new_stream()?;
        let count = norm.x.len() * tiles;
        let tiled = |elements: &Vec<T>| stream.clone_htod(&elements.repeat(tiles));
        Ok(Cuda {
            context: Context::cuda(0)?,
            cols: norm.cols,
            x: tiled(&norm.x)?,
            residual: tiled(&norm.residual)?,
            weight: stream.clone_htod(&norm.weight)?,
            dy: tiled(&norm.dy)?,
            dh: tiled(&norm.dh)?,
            h: stream.alloc_zeros(count)?,
            y: stream.alloc_zeros(count)?,
            dx: stream.alloc_zeros(count)?,
            rstd: stream.alloc_zeros(count / norm.cols)?,
            dweight: stream.alloc_zeros(norm.cols)?,
            stream,
        })
    }
}

// One description of each call, for running it and for its kernel's name.
macro_rules! call {
    ($self:ident, $operation:ident, $rows:ident, $method:ident($($argument:expr),*)) => {{
        let Cuda { stream, cols, x, residual, weight, dy, dh, h, y, dx, rstd, dweight, .. } = $self;
        let strides = [*cols as isize, 0];
        let shape = [$rows, 1, *cols];
        let read = |slice| Input::cuda_strided::<T, _>(slice, stream, 0, shape, strides);
        let of_weight = Input::cuda(weight, stream, [1, 1, *cols])?;
        let each_row = ([$rows, 1, 1], [1, 0]);
        match $operation {
            Operation::FusedAdd => fused_add(
                [read(x)?, read(residual)?, of_weight],
                [
                    Output::cuda_strided(h, stream, 0, shape, strides)?,
                    Output::cuda_strided(y, stream, 0, shape, strides)?,
                    Output::cuda_strided(rstd, stream, 0, each_row.0, each_row.1)?,
                ],
            )
            .$method($($argument),*)?,
            Operation::Forward => forward(
                [read(h)?, of_weight],
                Output::cuda_strided(y, stream, 0, shape, strides)?,
            )
            .$method($($argument),*)?,
            Operation::Backward => backward(
                [
                    read(dy)?,
                    read(h)?,
                    of_weight,
                    Input::cuda_strided(rstd, stream, 0, each_row.0, each_row.1)?,
                    read(dh)?,
                ],
                [
                    Output::cuda_strided(dx, stream, 0, shape, strides)?,
                    Output::cuda(dweight, stream, [1, 1, *cols])?,
                ],
            )
            .$method($($argument),*)?,
        }
    }};
}

impl<T: Real> Place<T> for Cuda<T> {
    fn start(&mut self, operation: Operation, rows: usize) -> Result<()> {
        let (context, own_stream) = (&self.context, &self.stream.clone());
        call!(self, operation, rows, run_on(context, own_stream));
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    fn kernel_name(&mut self, operation: Operation, rows: usize) -> Result<String> {
        let context = &self.context;
        Ok(call!(self, operation, rows, kernel_name(context)))
    }

    fn results(&self, rows: usize) -> Result<Results<T>> {
        let down = |slice: &CudaSlice<T>| self.stream.clone_dtoh(&slice.slice(..rows * self.cols));
        Ok(Results {
            h: down(&self.h)?,
            y: down(&self.y)?,
            rstd: self.stream.clone_dtoh(&self.rstd.slice(..rows))?,
            dx: down(&self.dx)?,
            dweight: self.stream.clone_dtoh(&self.dweight)?,
        })
    }
}
