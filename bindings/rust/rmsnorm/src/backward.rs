use rmsnorm_sys as sys;

use crate::call::{call_methods, operation, Call, Extent};
use crate::tensor::{Input, Output};

/// The gradients of [`Forward`](crate::Forward). With xhat = x * rstd and w = weight +
/// weight_offset, means over the columns and sums over all rows:
///
/// ```text
/// dx      = rstd * (w * dy - xhat * mean(w * dy * xhat)) + dresidual_out
/// dweight = sum(dy * xhat)
/// dbias   = sum(dy)
/// ```
///
/// x is what was normalised: forward's x, or its residual_out where there was a residual, and then
/// dx is the gradient of both. At least one output is given.
///
/// ```
/// # fn main() -> rmsnorm::Result<()> {
/// use rmsnorm::{Backward, Context, View, ViewMut};
///
/// let context = Context::cpu()?;
/// let (x, dy) = ([1.0f32, 2.0, -2.0, 0.5], [0.5f32, 1.0, 0.0, -1.0]);
/// let weight = [1.0f32, 2.0];
/// let (mut dx, mut dweight) = ([0.0f32; 4], [0.0f32; 2]);
/// Backward::new(View::rows(&dy, 2)?, View::rows(&x, 2)?)
///     .weight(&weight)
///     .dx(ViewMut::rows(&mut dx, 2)?)
///     .dweight(&mut dweight)
///     .run(&context)?;
/// assert_eq!(dweight, [0.3162277, 0.92191374]);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it is run"]
pub struct Backward<'a> {
    pub(crate) call: Call<'a, BackwardOperation>,
}

operation!(
    BackwardOperation,
    rmsnorm_backward_params_t,
    main = "x",
    wants_workspace = true,
    [rmsnorm_backward, rmsnorm_backward_workspace_size, rmsnorm_backward_kernel_name]
);

impl<'a> Backward<'a> {
    /// The gradient of y, and what was normalised, of one shape.
    pub fn new(dy: impl Into<Input<'a>>, x: impl Into<Input<'a>>) -> Self {
        let x = x.into();
        let mut call = start(x.shape, x.place);
        call.params.x = call.input("x", Extent::Elements, x);
        call.params.dy = call.input("dy", Extent::Elements, dy.into());
        Backward { call }
    }

    /// dx over dy.
    pub fn dx_over_dy(dy: impl Into<Output<'a>>, x: impl Into<Input<'a>>) -> Self {
        let (dy, x) = (dy.into(), x.into());
        let mut call = start(x.shape, x.place);
        call.params.x = call.input("x", Extent::Elements, x);
        call.params.dy = dy.tensor_as_input();
        call.params.dx = call.output("dy", Extent::Elements, dy);
        Backward { call }
    }

    /// dx over x.
    pub fn dx_over_x(dy: impl Into<Input<'a>>, x: impl Into<Output<'a>>) -> Self {
        let x = x.into();
        let mut call = start(x.shape, x.place);
        call.params.x = x.tensor_as_input();
        call.params.dx = call.output("x", Extent::Elements, x);
        call.params.dy = call.input("dy", Extent::Elements, dy.into());
        Backward { call }
    }

    /// As in forward.
    pub fn weight(mut self, weight: impl Into<Input<'a>>) -> Self {
        self.call.params.weight = self.call.input("weight", Extent::Vector, weight.into());
        self
    }

    /// Forward's. Absent, or in a row where it is 0, Inf or subnormal, it is computed from x and
    /// eps.
    pub fn rstd(mut self, rstd: impl Into<Input<'a>>) -> Self {
        self.call.params.rstd = self.call.input("rstd", Extent::Rows, rstd.into());
        self
    }

    /// The gradient that arrives at residual_out by other ways.
    pub fn dresidual_out(mut self, dresidual_out: impl Into<Input<'a>>) -> Self {
        self.call.params.dresidual_out =
            self.call.input("dresidual_out", Extent::Elements, dresidual_out.into());
        self
    }

    /// The gradient that arrives at residual_out by other ways, over which dx goes.
    pub fn dx_over_dresidual_out(mut self, dresidual_out: impl Into<Output<'a>>) -> Self {
        let dresidual_out = dresidual_out.into();
        let read = dresidual_out.tensor_as_input();
        self.call.params.dx =
            self.call.output("dx_over_dresidual_out", Extent::Elements, dresidual_out);
        if self.call.params.dx.dtype != sys::RMSNORM_DTYPE_NONE {
            self.call.params.dresidual_out = read;
        }
        self
    }

    /// Where dx goes.
    pub fn dx(mut self, dx: impl Into<Output<'a>>) -> Self {
        self.call.params.dx = self.call.output("dx", Extent::Elements, dx.into());
        self
    }

    /// Where dx goes once more, in a type of its own, for a residual of that type.
    pub fn dresidual(mut self, dresidual: impl Into<Output<'a>>) -> Self {
        self.call.params.dresidual =
            self.call.output("dresidual", Extent::Elements, dresidual.into());
        self
    }

    /// Where dweight goes: a vector of cols, or one per group if the weight is so.
    pub fn dweight(mut self, dweight: impl Into<Output<'a>>) -> Self {
        self.call.params.dweight = self.call.output("dweight", Extent::Vector, dweight.into());
        self
    }

    /// Where dbias goes, as dweight.
    pub fn dbias(mut self, dbias: impl Into<Output<'a>>) -> Self {
        self.call.params.dbias = self.call.output("dbias", Extent::Vector, dbias.into());
        self
    }

    /// As in forward; used where rstd is computed.
    #[inline]
    pub fn eps(mut self, eps: f64) -> Self {
        self.call.params.eps = eps;
        self
    }

    /// As in forward.
    #[inline]
    pub fn weight_offset(mut self, weight_offset: f64) -> Self {
        self.call.params.weight_offset = weight_offset;
        self
    }

    /// Adds to what dweight and dbias hold, rounding once.
    #[inline]
    pub fn accumulate(self, on: bool) -> Self {
        self.flag(sys::RMSNORM_FLAG_ACCUMULATE, on)
    }

    /// As in forward.
    #[inline]
    pub fn overlap(self, on: bool) -> Self {
        self.flag(sys::RMSNORM_FLAG_OVERLAP, on)
    }

    #[inline]
    fn flag(mut self, flag: u32, on: bool) -> Self {
        let flags = &mut self.call.params.flags;
        *flags = if on { *flags | flag } else { *flags & !flag };
        self
    }

    call_methods!();
}

#[inline]
fn start<'a>(shape: crate::Shape, place: crate::tensor::Place) -> Call<'a, BackwardOperation> {
    let mut params = sys::rmsnorm_backward_params_t::new();
    params.eps = crate::DEFAULT_EPS;
    Call::new(params, shape, place)
}
