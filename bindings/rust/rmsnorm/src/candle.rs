//! RMSNorm for candle, with gradients for x and weight. With the feature `candle-cuda` on CUDA as
//! well.
//!
//! ```
//! # fn main() -> candle_core::Result<()> {
//! use candle_core::{DType, Device, Module, Tensor, Var};
//! use rmsnorm::candle::RmsNorm;
//!
//! let weight = Var::ones(64, DType::F32, &Device::Cpu)?;
//! let norm = RmsNorm::new(weight.as_tensor().clone(), 1e-6);
//! let x = Tensor::randn(0f32, 1.0, (2, 8, 64), &Device::Cpu)?;
//! let gradients = norm.forward(&x)?.sqr()?.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&weight).unwrap().dims(), [64]);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "candle-cuda")]
mod cuda;

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Module, Result, Shape, Storage, Tensor,
};

use crate::view::lay_out;
use crate::{Backward, Context, Element, Forward, Input, Output, View, ViewMut};

/// A norm over the last dimension: `x / sqrt(mean(x²) + eps) * (weight + weight_offset)`, as
/// [`Forward`](crate::Forward) computes it, in x's type.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    scalars: Scalars,
}

#[derive(Debug, Clone, Copy)]
struct Scalars {
    eps: f64,
    weight_offset: f64,
}

impl RmsNorm {
    /// `weight` has one dimension. Its type may be another than x's, `f64` aside.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        RmsNorm { weight, scalars: Scalars { eps, weight_offset: 0.0 } }
    }

    /// Added to the weight: 1 for Gemma.
    pub fn weight_offset(mut self, weight_offset: f64) -> Self {
        self.scalars.weight_offset = weight_offset;
        self
    }

    /// What it was made with.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        normalise(x, &self.weight, self.scalars)
    }
}

/// The norm of x over its last dimension; see [`RmsNorm`].
///
/// # Errors
/// Shapes or types that do not go together, another device than CPU and (with `candle-cuda`) CUDA.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    normalise(x, weight, Scalars { eps, weight_offset: 0.0 })
}

fn normalise(x: &Tensor, weight: &Tensor, scalars: Scalars) -> Result<Tensor> {
    let cols = weight.dims1()?;
    if x.dims().last() != Some(&cols) {
        candle_core::bail!("weight has {cols} elements, but x is of shape {:?}", x.dims());
    }
    regular(x)?.apply_op2(&regular(weight)?, scalars)
}

/// A tensor that needs no more than two strides: itself or a copy.
fn regular(tensor: &Tensor) -> Result<Tensor> {
    match lay_out(tensor.dims(), &strides_of(tensor.layout())) {
        Ok(_) => Ok(tensor.clone()),
        Err(_) => tensor.contiguous(),
    }
}

fn strides_of(layout: &Layout) -> Vec<isize> {
    layout.stride().iter().map(|&stride| stride as isize).collect()
}

fn failed(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

impl CustomOp2 for Scalars {
    fn name(&self) -> &'static str {
        "rmsnorm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = new_like(x, x_layout.shape().elem_count())?;
        let shape = view_shape(x_layout)?;
        Forward::new(read(x, x_layout)?, write(&mut y, shape)?)
            .weight(read(weight, weight_layout)?)
            .eps(self.eps)
            .weight_offset(self.weight_offset)
            .run(cpu()?)
            .map_err(failed)?;
        Ok((y, x_layout.shape().clone()))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let y = cuda::forward(*self, [(x, x_layout), (weight, weight_layout)])?;
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = Gradients { scalars: *self, dweight: Mutex::new(None) };
        let dx = regular(dy)?.apply_op3_no_bwd(x, weight, &gradients)?;
        Ok((Some(dx), Some(weight.apply_op1_no_bwd(&gradients)?)))
    }
}

/// Backward as two operators, for candle's have one result: of dy, x and weight it gives dx and
/// keeps dweight, then of weight it gives what it kept.
struct Gradients {
    scalars: Scalars,
    dweight: Mutex<Option<Storage>>,
}

impl Gradients {
    fn keep(&self, dweight: Storage) {
        *self.dweight.lock().unwrap_or_else(PoisonError::into_inner) = Some(dweight);
    }

    fn take(&self) -> Result<Storage> {
        let kept = self.dweight.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.ok_or_else(|| candle_core::Error::msg("rmsnorm: dweight has not been computed"))
    }
}

impl CustomOp3 for Gradients {
    fn name(&self) -> &'static str {
        "rmsnorm-backward"
    }

    fn cpu_fwd(
        &self,
        dy: &CpuStorage,
        dy_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut dx = new_like(x, x_layout.shape().elem_count())?;
        let mut dweight = new_like(weight, weight_layout.shape().elem_count())?;
        Backward::new(read(dy, dy_layout)?, read(x, x_layout)?)
            .weight(read(weight, weight_layout)?)
            .dx(write(&mut dx, view_shape(x_layout)?)?)
            .dweight(write(&mut dweight, view_shape(weight_layout)?)?)
            .eps(self.scalars.eps)
            .weight_offset(self.scalars.weight_offset)
            .run(cpu()?)
            .map_err(failed)?;
        self.keep(Storage::Cpu(dweight));
        Ok((dx, x_layout.shape().clone()))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        dy: &CudaStorage,
        dy_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let tensors = [(dy, dy_layout), (x, x_layout), (weight, weight_layout)];
        let (dx, dweight) = cuda::backward(self.scalars, tensors)?;
        self.keep(Storage::Cuda(dweight));
        Ok((dx, x_layout.shape().clone()))
    }
}

impl CustomOp1 for Gradients {
    fn name(&self) -> &'static str {
        "rmsnorm-dweight"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Storage::Cpu(dweight) => Ok((dweight, layout.shape().clone())),
            _ => candle_core::bail!("rmsnorm: dweight is not on the CPU"),
        }
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Storage::Cuda(dweight) => Ok((dweight, layout.shape().clone())),
            _ => candle_core::bail!("rmsnorm: dweight is not on CUDA"),
        }
    }
}

// ---- CPU storage ---------------------------------------------------------------------------------

/// The context of all calls on the CPU: with the feature `rayon`, large ones run on the threads of
/// the pool that the caller is in, as candle's own do.
fn cpu() -> Result<&'static Context> {
    static CPU: OnceLock<Context> = OnceLock::new();
    if let Some(context) = CPU.get() {
        return Ok(context);
    }
    let options = Context::options();
    #[cfg(feature = "rayon")]
    let options = options.rayon();
    let made = options.create().map_err(failed)?;
    Ok(CPU.get_or_init(|| made))
}

macro_rules! each {
    ($storage:expr, $elements:ident => $body:expr) => {
        match $storage {
            CpuStorage::F32($elements) => $body,
            CpuStorage::F16($elements) => $body,
            CpuStorage::BF16($elements) => $body,
            CpuStorage::F64($elements) => $body,
            other => candle_core::bail!("rmsnorm has no {:?}", other.dtype()),
        }
    };
}

fn view_shape(layout: &Layout) -> Result<crate::Shape> {
    Ok(lay_out(layout.dims(), &strides_of(layout)).map_err(failed)?.0)
}

fn read<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Input<'a>> {
    let (shape, strides) = lay_out(layout.dims(), &strides_of(layout)).map_err(failed)?;
    let offset = layout.start_offset();
    each!(storage, elements => {
        Ok(View::strided(elements, offset, shape, strides).map_err(failed)?.into())
    })
}

fn write(storage: &mut CpuStorage, shape: crate::Shape) -> Result<Output<'_>> {
    each!(storage, elements => packed(elements, shape))
}

fn packed<T: Element>(elements: &mut [T], [_, groups, cols]: crate::Shape) -> Result<Output<'_>> {
    Ok(ViewMut::groups(elements, groups, cols).map_err(failed)?.into())
}

fn new_like(storage: &CpuStorage, count: usize) -> Result<CpuStorage> {
    Ok(match storage {
        CpuStorage::F32(_) => CpuStorage::F32(vec![0.0; count]),
        CpuStorage::F16(_) => CpuStorage::F16(vec![half::f16::ZERO; count]),
        CpuStorage::BF16(_) => CpuStorage::BF16(vec![half::bf16::ZERO; count]),
        CpuStorage::F64(_) => CpuStorage::F64(vec![0.0; count]),
        other => candle_core::bail!("rmsnorm has no {:?}", other.dtype()),
    })
}
