//! Gated activations.

use rmsnorm_sys as sys;

use crate::call::{call_methods, operation, Call, Extent};
use crate::tensor::{Input, Output, Place};
use crate::Shape;

/// What the gate goes through: `act(g) = g * s(g)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Activation {
    /// `s(g) = 1 / (1 + exp(-g))`: SwiGLU.
    #[default]
    Silu,
    /// `s(g) = (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g³))) / 2`: GeGLU, approximated.
    GeluTanh,
    /// `s(g) = (1 + erf(g / sqrt(2))) / 2`: GeGLU.
    GeluErf,
}

impl Activation {
    #[inline]
    fn code(self) -> sys::rmsnorm_activation_t {
        match self {
            Activation::Silu => sys::RMSNORM_ACTIVATION_SILU,
            Activation::GeluTanh => sys::RMSNORM_ACTIVATION_GELU_TANH,
            Activation::GeluErf => sys::RMSNORM_ACTIVATION_GELU_ERF,
        }
    }
}

// ---- Forward -------------------------------------------------------------------------------------

/// A gated activation, of three tensors of one shape:
///
/// ```text
/// y = act(gate) * up
/// ```
///
/// The activation is [`Activation::Silu`] unless another is given. Describe the call, then
/// [`run`](Self::run) it.
///
/// ```
/// # fn main() -> rmsnorm::Result<()> {
/// use rmsnorm::{Context, GluForward, View, ViewMut};
///
/// let context = Context::cpu()?;
/// let packed = [0.0f32, 1.0, 3.0, 2.0, -1.0, 2.0, 0.5, 4.0]; // rows of [gate | up]
/// let (gate, up) = View::rows(&packed, 4)?.split_cols(2)?;
/// let mut y = [0.0f32; 4];
/// GluForward::new(gate, up, ViewMut::rows(&mut y, 2)?).run(&context)?;
/// assert_eq!(y, [0.0, 1.4621172, -0.13447072, 7.0463767]);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it is run"]
pub struct GluForward<'a> {
    call: Call<'a, GluForwardOperation>,
}

operation!(
    GluForwardOperation,
    rmsnorm_glu_forward_params_t,
    main = "gate",
    wants_workspace = false,
    [rmsnorm_glu_forward, rmsnorm_glu_forward_workspace_size, rmsnorm_glu_forward_kernel_name]
);

impl<'a> GluForward<'a> {
    /// y from gate and up.
    pub fn new(
        gate: impl Into<Input<'a>>,
        up: impl Into<Input<'a>>,
        y: impl Into<Output<'a>>,
    ) -> Self {
        let gate = gate.into();
        let mut call = Self::start(gate.shape, gate.place);
        call.params.gate = call.input("gate", Extent::Elements, gate);
        call.params.up = call.input("up", Extent::Elements, up.into());
        call.params.y = call.output("y", Extent::Elements, y.into());
        GluForward { call }
    }

    /// y over gate.
    pub fn y_over_gate(gate: impl Into<Output<'a>>, up: impl Into<Input<'a>>) -> Self {
        let gate = gate.into();
        let mut call = Self::start(gate.shape, gate.place);
        call.params.gate = gate.tensor_as_input();
        call.params.y = call.output("gate", Extent::Elements, gate);
        call.params.up = call.input("up", Extent::Elements, up.into());
        GluForward { call }
    }

    /// y over up.
    pub fn y_over_up(gate: impl Into<Input<'a>>, up: impl Into<Output<'a>>) -> Self {
        let (gate, up) = (gate.into(), up.into());
        let mut call = Self::start(gate.shape, gate.place);
        call.params.gate = call.input("gate", Extent::Elements, gate);
        call.params.up = up.tensor_as_input();
        call.params.y = call.output("up", Extent::Elements, up);
        GluForward { call }
    }

    #[inline]
    fn start(shape: Shape, place: Place) -> Call<'a, GluForwardOperation> {
        Call::new(sys::rmsnorm_glu_forward_params_t::new(), shape, place)
    }

    /// What the gate goes through.
    #[inline]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.call.params.activation = activation.code();
        self
    }

    /// CUDA, from sm_90 on: the kernel may start before the stream's previous one ends, for which
    /// it waits before it reads anything.
    #[inline]
    pub fn overlap(mut self, on: bool) -> Self {
        self.call.params.flags = if on { sys::RMSNORM_FLAG_OVERLAP } else { 0 };
        self
    }

    call_methods!();
}

// ---- Backward ------------------------------------------------------------------------------------

/// The gradients of [`GluForward`], from gate and up alone:
///
/// ```text
/// dgate = dy * up * act'(gate)
/// dup   = dy * act(gate)
/// ```
///
/// All tensors have one shape. At least one output is given. A gradient may go over what it is the
/// gradient of, or over dy: each such way has a constructor of its own, which takes that tensor to
/// be written.
///
/// ```
/// # fn main() -> rmsnorm::Result<()> {
/// use rmsnorm::{Activation, Context, GluBackward, ViewMut};
///
/// let context = Context::cpu()?;
/// let mut packed = [0.0f32, 1.0, 3.0, 2.0]; // a row of [gate | up]; then of [dgate | dup]
/// let (gate, up) = ViewMut::rows(&mut packed, 4)?.split_cols(2)?;
/// GluBackward::over_gate_and_up(&[1.0f32, 0.5], gate, up)
///     .activation(Activation::GeluErf)
///     .run(&context)?;
/// assert_eq!(packed, [1.5, 1.0833155, 0.0, 0.4206724]);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing until it is run"]
pub struct GluBackward<'a> {
    call: Call<'a, GluBackwardOperation>,
}

operation!(
    GluBackwardOperation,
    rmsnorm_glu_backward_params_t,
    main = "gate",
    wants_workspace = false,
    [rmsnorm_glu_backward, rmsnorm_glu_backward_workspace_size, rmsnorm_glu_backward_kernel_name]
);

/// What backward reads, and what goes over it.
enum Operand<'a> {
    Read(Input<'a>),
    Dgate(Output<'a>),
    Dup(Output<'a>),
}
use Operand::{Dgate, Dup, Read};

impl<'a> Operand<'a> {
    fn extent(&self) -> (Shape, Place) {
        match self {
            Read(input) => (input.shape, input.place),
            Dgate(output) | Dup(output) => (output.shape, output.place),
        }
    }

    fn put(self, call: &mut Call<'a, GluBackwardOperation>, name: &str) -> sys::rmsnorm_input_t {
        let (output, is_dgate) = match self {
            Read(input) => return call.input(name, Extent::Elements, input),
            Dgate(output) => (output, true),
            Dup(output) => (output, false),
        };
        let read = output.tensor_as_input();
        let written = call.output(name, Extent::Elements, output);
        if is_dgate {
            call.params.dgate = written;
        } else {
            call.params.dup = written;
        }
        read
    }
}

impl<'a> GluBackward<'a> {
    /// The gradient of y, and what forward had.
    pub fn new(
        dy: impl Into<Input<'a>>,
        gate: impl Into<Input<'a>>,
        up: impl Into<Input<'a>>,
    ) -> Self {
        Self::of(Read(dy.into()), Read(gate.into()), Read(up.into()))
    }

    /// dgate over gate.
    pub fn dgate_over_gate(
        dy: impl Into<Input<'a>>,
        gate: impl Into<Output<'a>>,
        up: impl Into<Input<'a>>,
    ) -> Self {
        Self::of(Read(dy.into()), Dgate(gate.into()), Read(up.into()))
    }

    /// dgate over dy.
    pub fn dgate_over_dy(
        dy: impl Into<Output<'a>>,
        gate: impl Into<Input<'a>>,
        up: impl Into<Input<'a>>,
    ) -> Self {
        Self::of(Dgate(dy.into()), Read(gate.into()), Read(up.into()))
    }

    /// dup over up.
    pub fn dup_over_up(
        dy: impl Into<Input<'a>>,
        gate: impl Into<Input<'a>>,
        up: impl Into<Output<'a>>,
    ) -> Self {
        Self::of(Read(dy.into()), Read(gate.into()), Dup(up.into()))
    }

    /// dup over dy.
    pub fn dup_over_dy(
        dy: impl Into<Output<'a>>,
        gate: impl Into<Input<'a>>,
        up: impl Into<Input<'a>>,
    ) -> Self {
        Self::of(Dup(dy.into()), Read(gate.into()), Read(up.into()))
    }

    /// dgate over gate, dup over up.
    pub fn over_gate_and_up(
        dy: impl Into<Input<'a>>,
        gate: impl Into<Output<'a>>,
        up: impl Into<Output<'a>>,
    ) -> Self {
        Self::of(Read(dy.into()), Dgate(gate.into()), Dup(up.into()))
    }

    /// dgate over dy, dup over up.
    pub fn over_dy_and_up(
        dy: impl Into<Output<'a>>,
        gate: impl Into<Input<'a>>,
        up: impl Into<Output<'a>>,
    ) -> Self {
        Self::of(Dgate(dy.into()), Read(gate.into()), Dup(up.into()))
    }

    /// dgate over gate, dup over dy.
    pub fn over_gate_and_dy(
        dy: impl Into<Output<'a>>,
        gate: impl Into<Output<'a>>,
        up: impl Into<Input<'a>>,
    ) -> Self {
        Self::of(Dup(dy.into()), Dgate(gate.into()), Read(up.into()))
    }

    fn of(dy: Operand<'a>, gate: Operand<'a>, up: Operand<'a>) -> Self {
        let (shape, place) = gate.extent();
        let mut call: Call<GluBackwardOperation> =
            Call::new(sys::rmsnorm_glu_backward_params_t::new(), shape, place);
        call.params.gate = gate.put(&mut call, "gate");
        call.params.dy = dy.put(&mut call, "dy");
        call.params.up = up.put(&mut call, "up");
        GluBackward { call }
    }

    /// Where dgate goes.
    pub fn dgate(mut self, dgate: impl Into<Output<'a>>) -> Self {
        self.call.params.dgate = self.call.output("dgate", Extent::Elements, dgate.into());
        self
    }

    /// Where dup goes.
    pub fn dup(mut self, dup: impl Into<Output<'a>>) -> Self {
        self.call.params.dup = self.call.output("dup", Extent::Elements, dup.into());
        self
    }

    /// Forward's.
    #[inline]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.call.params.activation = activation.code();
        self
    }

    /// As in forward.
    #[inline]
    pub fn overlap(mut self, on: bool) -> Self {
        self.call.params.flags = if on { sys::RMSNORM_FLAG_OVERLAP } else { 0 };
        self
    }

    call_methods!();
}
