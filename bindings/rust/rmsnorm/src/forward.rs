use rmsnorm_sys as sys;

use crate::call::{call_methods, operation, Call, Extent};
use crate::tensor::{Input, Output};

/// Where y is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rounding {
    /// Once, at the end.
    #[default]
    Once,
    /// `h * rstd` is rounded to h's type as well: as LlamaRMSNorm in Hugging Face's transformers.
    Llama,
}

/// RMSNorm: with h = x + residual where there is a residual, else x,
///
/// ```text
/// y = h / sqrt(mean(h²) + eps) * (weight + weight_offset) + bias
/// ```
///
/// The mean is over the columns. What is not given: weight is 1, bias 0, eps 1e-6. Describe the
/// call, then [`run`](Self::run) it.
///
/// ```
/// # fn main() -> rmsnorm::Result<()> {
/// use rmsnorm::{Context, Forward, View, ViewMut};
///
/// let context = Context::cpu()?;
/// let x = [1.0f32, 2.0, 3.0, 4.0, -1.0, 0.0, 1.0, 2.0];
/// let weight = [1.0f32, 1.0, 2.0, 2.0];
/// let mut y = [0.0f32; 8];
/// Forward::new(View::rows(&x, 4)?, ViewMut::rows(&mut y, 4)?)
///     .weight(&weight)
///     .eps(1e-5)
///     .run(&context)?;
/// assert_eq!(y[0], 0.36514813);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it is run"]
pub struct Forward<'a> {
    pub(crate) call: Call<'a, ForwardOperation>,
}

operation!(
    ForwardOperation,
    rmsnorm_forward_params_t,
    main = "x",
    wants_workspace = false,
    [rmsnorm_forward, rmsnorm_forward_workspace_size, rmsnorm_forward_kernel_name]
);

impl<'a> Forward<'a> {
    /// y from x, of one shape.
    pub fn new(x: impl Into<Input<'a>>, y: impl Into<Output<'a>>) -> Self {
        let x = x.into();
        let mut call = start(x.shape, x.place);
        call.params.x = call.input("x", Extent::Elements, x);
        call.params.y = call.output("y", Extent::Elements, y.into());
        Forward { call }
    }

    /// y over x.
    pub fn in_place(x: impl Into<Output<'a>>) -> Self {
        let x = x.into();
        let mut call = start(x.shape, x.place);
        call.params.x = x.tensor_as_input();
        call.params.y = call.output("y", Extent::Elements, x);
        Forward { call }
    }

    /// The fused add with h over x: x becomes x + residual, y its norm.
    pub fn sum_in_x(
        x: impl Into<Output<'a>>,
        residual: impl Into<Input<'a>>,
        y: impl Into<Output<'a>>,
    ) -> Self {
        let x = x.into();
        let mut call = start(x.shape, x.place);
        call.params.x = x.tensor_as_input();
        call.params.residual_out = call.output("residual_out", Extent::Elements, x);
        call.params.residual = call.input("residual", Extent::Elements, residual.into());
        call.params.y = call.output("y", Extent::Elements, y.into());
        Forward { call }
    }

    /// Of x's shape, added to x before all else. The sum is rounded to residual_out's type; without
    /// one to x's and residual's, to `f32` if they differ.
    pub fn residual(mut self, residual: impl Into<Input<'a>>) -> Self {
        self.call.params.residual = self.call.input("residual", Extent::Elements, residual.into());
        self
    }

    /// Where x + residual goes; backward wants it as x.
    pub fn residual_out(mut self, residual_out: impl Into<Output<'a>>) -> Self {
        self.call.params.residual_out =
            self.call.output("residual_out", Extent::Elements, residual_out.into());
        self
    }

    /// The residual, over which x + residual goes.
    pub fn residual_in_place(mut self, residual: impl Into<Output<'a>>) -> Self {
        let residual = residual.into();
        let read = residual.tensor_as_input();
        self.call.params.residual_out =
            self.call.output("residual_in_place", Extent::Elements, residual);
        if self.call.params.residual_out.dtype != sys::RMSNORM_DTYPE_NONE {
            self.call.params.residual = read;
        }
        self
    }

    /// A vector of cols, or one per group (1 x groups x cols).
    pub fn weight(mut self, weight: impl Into<Input<'a>>) -> Self {
        self.call.params.weight = self.call.input("weight", Extent::Vector, weight.into());
        self
    }

    /// As the weight.
    pub fn bias(mut self, bias: impl Into<Input<'a>>) -> Self {
        self.call.params.bias = self.call.input("bias", Extent::Vector, bias.into());
        self
    }

    /// Where `1 / sqrt(mean(h²) + eps)` goes, for backward: one element per row and group, `f32`
    /// (`f64` where all is).
    pub fn rstd(mut self, rstd: impl Into<Output<'a>>) -> Self {
        self.call.params.rstd = self.call.output("rstd", Extent::Rows, rstd.into());
        self
    }

    /// 0 or more, finite; 0 means 0.
    #[inline]
    pub fn eps(mut self, eps: f64) -> Self {
        self.call.params.eps = eps;
        self
    }

    /// Added to the weight: 1 for Gemma.
    #[inline]
    pub fn weight_offset(mut self, weight_offset: f64) -> Self {
        self.call.params.weight_offset = weight_offset;
        self
    }

    /// Where y is rounded.
    #[inline]
    pub fn rounding(mut self, rounding: Rounding) -> Self {
        self.call.params.rounding = match rounding {
            Rounding::Once => sys::RMSNORM_ROUNDING_ONCE,
            Rounding::Llama => sys::RMSNORM_ROUNDING_LLAMA,
        };
        self
    }

    /// CUDA, from sm_90 on: the kernel may start before the stream's previous one ends. No
    /// unfinished work in the stream may write weight or bias.
    #[inline]
    pub fn overlap(mut self, on: bool) -> Self {
        self.call.params.flags = if on { sys::RMSNORM_FLAG_OVERLAP } else { 0 };
        self
    }

    call_methods!();
}

#[inline]
fn start<'a>(shape: crate::Shape, place: crate::tensor::Place) -> Call<'a, ForwardOperation> {
    let mut params = sys::rmsnorm_forward_params_t::new();
    params.eps = crate::DEFAULT_EPS;
    Call::new(params, shape, place)
}
