//! The project's test vectors: through the C interface, and through this crate's own where that can
//! express them.
mod support;

use std::collections::HashMap;
use std::ffi::{c_char, CStr};
use std::ptr::null_mut;

use rmsnorm::rmsnorm_sys as sys;
use rmsnorm::{Activation, Backward, Context, Error, Forward, GluBackward, GluForward, Rounding};
use support::{expect_memories, vectors, Memory, Vector};

const OUTPUTS: [&str; 8] =
    ["y", "residual_out", "dx", "dresidual", "dweight", "dbias", "dgate", "dup"];

fn is_output(vector: &Vector, tensor: &str) -> bool {
    OUTPUTS.contains(&tensor) || (tensor == "rstd" && vector.text("op") == "forward")
}

// ---- The C interface -----------------------------------------------------------------------------

fn dtype_of(text: &str) -> sys::rmsnorm_dtype_t {
    match text {
        "f32" => sys::RMSNORM_DTYPE_F32,
        "f16" => sys::RMSNORM_DTYPE_F16,
        "bf16" => sys::RMSNORM_DTYPE_BF16,
        _ => sys::RMSNORM_DTYPE_F64,
    }
}

macro_rules! params {
    ($type:ident, $vector:ident, $memories:ident, [$($scalar:ident),*], [$($tensor:ident),*]) => {{
        let mut params = sys::$type::new();
        params.rows = $vector.number("rows");
        params.groups = $vector.number("groups");
        params.cols = $vector.number("cols");
        params.flags = $vector.number("flags");
        $(params.$scalar = $vector.number(stringify!($scalar));)*
        $(
            let name = stringify!($tensor);
            if $vector.has(&format!("{name}.dtype")) {
                let memory = $memories.get_mut($vector.memory_of(name)).expect("a memory");
                let offset = $vector.of::<usize>(name, "offset") * memory.element_size();
                let tensor = &mut params.$tensor;
                let bytes = memory.bytes_mut();
                if !bytes.is_empty() {
                    tensor.data = bytes[offset..].as_mut_ptr().cast();
                }
                tensor.row_stride = $vector.of(name, "row_stride");
                tensor.group_stride = $vector.of(name, "group_stride");
                tensor.dtype = dtype_of($vector.text(&format!("{name}.dtype")));
            }
        )*
        params
    }};
}

/// Status and text.
fn run_raw(
    context: &Context,
    vector: &Vector,
    memories: &mut HashMap<String, Memory>,
) -> Result<(i32, String), sys::LoadError> {
    let library = sys::Library::get()?;
    let raw = context.as_raw();
    let mut size = 0;
    let mut workspace: Vec<u64> = Vec::new();
    /// The call's status, with as much workspace as it asks for.
    macro_rules! status_of {
        ($run:ident, $workspace_size:ident, $params:expr) => {{
            let params = $params;
            match library.$workspace_size(raw, &params, &mut size)? {
                0 => {
                    workspace.resize(size.div_ceil(8), 0);
                    library.$run(raw, &params, workspace.as_mut_ptr().cast(), size, null_mut())?
                }
                other => other,
            }
        }};
    }
    // SAFETY: the vectors describe memory that is there.
    let status = unsafe {
        match vector.text("op") {
            "forward" => status_of!(
                rmsnorm_forward,
                rmsnorm_forward_workspace_size,
                params!(
                    rmsnorm_forward_params_t,
                    vector,
                    memories,
                    [eps, weight_offset, rounding],
                    [x, residual, weight, bias, y, residual_out, rstd]
                )
            ),
            "backward" => status_of!(
                rmsnorm_backward,
                rmsnorm_backward_workspace_size,
                params!(
                    rmsnorm_backward_params_t,
                    vector,
                    memories,
                    [eps, weight_offset, rounding],
                    [dy, x, weight, rstd, dresidual_out, dx, dresidual, dweight, dbias]
                )
            ),
            "glu_forward" => status_of!(
                rmsnorm_glu_forward,
                rmsnorm_glu_forward_workspace_size,
                params!(
                    rmsnorm_glu_forward_params_t,
                    vector,
                    memories,
                    [activation],
                    [gate, up, y]
                )
            ),
            "glu_backward" => status_of!(
                rmsnorm_glu_backward,
                rmsnorm_glu_backward_workspace_size,
                params!(
                    rmsnorm_glu_backward_params_t,
                    vector,
                    memories,
                    [activation],
                    [dy, gate, up, dgate, dup]
                )
            ),
            other => panic!("op {other}"),
        }
    };
    let mut text = [0 as c_char; 1024];
    // SAFETY: the library writes a C string of at most that size.
    let text = unsafe {
        library.rmsnorm_last_error(text.as_mut_ptr(), text.len())?;
        CStr::from_ptr(text.as_ptr())
    };
    Ok((status, text.to_string_lossy().into_owned()))
}

#[test]
fn c_interface() {
    let context = Context::cpu().unwrap();
    let (vectors, data) = vectors();
    for vector in &vectors {
        let name = vector.text("name");
        let mut memories = vector.memories(&data, "before");
        let (status, text) = run_raw(&context, vector, &mut memories).unwrap();
        assert_eq!(status, vector.number::<i32>("status"), "{name}: {text}");
        if status != 0 {
            assert!(text.starts_with(vector.text("error")), "{name}: {text}");
        }
        expect_memories(name, &memories, &vector.memories(&data, "after"));
    }
}

// ---- This crate ----------------------------------------------------------------------------------

type Pair<'a> = (rmsnorm::Output<'a>, rmsnorm::Output<'a>);

/// The memories of one call, each lent once: to read, or to write.
struct Lent<'a> {
    vector: &'a Vector,
    read: HashMap<&'a str, &'a Memory>,
    written: HashMap<&'a str, &'a mut Memory>,
}

impl<'a> Lent<'a> {
    fn new(vector: &'a Vector, memories: &'a mut HashMap<String, Memory>) -> Self {
        let (mut read, mut written) = (HashMap::new(), HashMap::new());
        for (name, memory) in memories {
            let shared = vector.tensors();
            let mut standing = shared.iter().filter(|tensor| vector.memory_of(tensor) == name);
            if standing.any(|tensor| is_output(vector, tensor)) {
                written.insert(name.as_str(), memory);
            } else {
                read.insert(name.as_str(), &*memory);
            }
        }
        Lent { vector, read, written }
    }

    fn has(&self, tensor: &str) -> bool {
        self.vector.has(&format!("{tensor}.dtype"))
    }

    fn layout(&self, tensor: &str) -> (usize, [usize; 3], [isize; 2]) {
        let vector = self.vector;
        let strides = [vector.of(tensor, "row_stride"), vector.of(tensor, "group_stride")];
        let size = |name| vector.number::<usize>(name);
        let shape = match tensor {
            "rstd" => [size("rows"), size("groups").max(1), 1],
            "weight" | "bias" | "dweight" | "dbias" => {
                let groups = if strides[1] == 0 { 1 } else { size("groups").max(1) };
                [1, groups, size("cols")]
            }
            _ => [size("rows"), size("groups").max(1), size("cols")],
        };
        (vector.of(tensor, "offset"), shape, strides)
    }

    fn input(&self, tensor: &'a str) -> Result<rmsnorm::Input<'a>, Error> {
        let (offset, shape, strides) = self.layout(tensor);
        self.read[self.vector.memory_of(tensor)].view(offset, shape, strides)
    }

    fn output(&mut self, tensor: &'a str) -> Result<rmsnorm::Output<'a>, Error> {
        let (offset, shape, strides) = self.layout(tensor);
        let memory = self.written.remove(self.vector.memory_of(tensor)).expect("lent once");
        memory.view_mut(offset, shape, strides)
    }

    /// Two outputs in one memory: a packed tensor's halves.
    fn outputs(&mut self, first: &'a str) -> Result<Pair<'a>, Error> {
        let (_, [rows, groups, cols], strides) = self.layout(first);
        let memory = self.written.remove(first).expect("lent once");
        memory.split_mut([rows, groups, 2 * cols], strides, cols)
    }

    fn stands_in(&self, tensor: &str, memory: &str) -> bool {
        self.has(tensor) && self.vector.memory_of(tensor) == memory
    }
}

/// Sets what is there, with the method of its name.
macro_rules! set {
    ($call:ident, $lent:ident, $way:ident, [$($tensor:ident),*]) => {$(
        if $lent.has(stringify!($tensor)) {
            $call = $call.$tensor($lent.$way(stringify!($tensor))?);
        }
    )*};
}

fn run_forward(context: &Context, mut lent: Lent) -> Result<(), Error> {
    let vector = lent.vector;
    let mut sum_is_set = !lent.has("residual_out");
    let mut call = if lent.stands_in("y", "x") {
        Forward::in_place(lent.output("y")?)
    } else if lent.stands_in("residual_out", "x") {
        sum_is_set = true;
        Forward::sum_in_x(lent.output("x")?, lent.input("residual")?, lent.output("y")?)
    } else if lent.stands_in("residual_out", "y") {
        sum_is_set = true;
        let (y, sum) = lent.outputs("y")?;
        Forward::new(lent.input("x")?, y).residual_out(sum)
    } else {
        let y = lent.output("y")?;
        Forward::new(lent.input("x")?, y)
    };
    if lent.stands_in("residual_out", "residual") {
        sum_is_set = true;
        call = call.residual_in_place(lent.output("residual_out")?);
    } else if lent.has("residual") && !lent.stands_in("residual_out", "x") {
        call = call.residual(lent.input("residual")?);
    }
    if !sum_is_set {
        call = call.residual_out(lent.output("residual_out")?);
    }
    set!(call, lent, input, [weight, bias]);
    set!(call, lent, output, [rstd]);
    if vector.number::<i32>("rounding") == sys::RMSNORM_ROUNDING_LLAMA {
        call = call.rounding(Rounding::Llama);
    }
    let overlap = vector.number::<u32>("flags") & sys::RMSNORM_FLAG_OVERLAP != 0;
    call = call.eps(vector.number("eps")).weight_offset(vector.number("weight_offset"));
    call.overlap(overlap).run(context)
}

fn run_backward(context: &Context, mut lent: Lent) -> Result<(), Error> {
    let vector = lent.vector;
    let mut call = if lent.stands_in("dx", "dy") {
        let dy = lent.output("dy")?;
        Backward::dx_over_dy(dy, lent.input("x")?)
    } else if lent.stands_in("dx", "x") {
        let x = lent.output("x")?;
        Backward::dx_over_x(lent.input("dy")?, x)
    } else {
        Backward::new(lent.input("dy")?, lent.input("x")?)
    };
    if lent.stands_in("dx", "dresidual_out") {
        call = call.dx_over_dresidual_out(lent.output("dresidual_out")?);
    } else {
        set!(call, lent, input, [dresidual_out]);
        if lent.stands_in("dx", "dx") {
            call = call.dx(lent.output("dx")?);
        }
    }
    set!(call, lent, input, [weight, rstd]);
    set!(call, lent, output, [dresidual, dweight, dbias]);
    let accumulate = vector.number::<u32>("flags") & sys::RMSNORM_FLAG_ACCUMULATE != 0;
    call = call.eps(vector.number("eps")).weight_offset(vector.number("weight_offset"));
    call.accumulate(accumulate).run(context)
}

fn activation(vector: &Vector) -> Activation {
    match vector.number("activation") {
        sys::RMSNORM_ACTIVATION_SILU => Activation::Silu,
        sys::RMSNORM_ACTIVATION_GELU_TANH => Activation::GeluTanh,
        sys::RMSNORM_ACTIVATION_GELU_ERF => Activation::GeluErf,
        other => panic!("activation {other}"),
    }
}

fn run_glu_forward(context: &Context, mut lent: Lent) -> Result<(), Error> {
    let vector = lent.vector;
    let call = if lent.stands_in("y", "gate") {
        GluForward::y_over_gate(lent.output("y")?, lent.input("up")?)
    } else if lent.stands_in("y", "up") {
        GluForward::y_over_up(lent.input("gate")?, lent.output("y")?)
    } else {
        let y = lent.output("y")?;
        GluForward::new(lent.input("gate")?, lent.input("up")?, y)
    };
    let overlap = vector.number::<u32>("flags") & sys::RMSNORM_FLAG_OVERLAP != 0;
    call.activation(activation(vector)).overlap(overlap).run(context)
}

fn run_glu_backward(context: &Context, mut lent: Lent) -> Result<(), Error> {
    let vector = lent.vector;
    let over = |lent: &Lent, dgate: &str, dup: &str| {
        lent.stands_in("dgate", dgate) && lent.stands_in("dup", dup)
    };
    let mut call = if over(&lent, "gate", "gate") {
        let (gate, up) = lent.outputs("gate")?;
        GluBackward::over_gate_and_up(lent.input("dy")?, gate, up)
    } else if over(&lent, "gate", "up") {
        let (gate, up) = (lent.output("gate")?, lent.output("up")?);
        GluBackward::over_gate_and_up(lent.input("dy")?, gate, up)
    } else if over(&lent, "dy", "up") {
        let (dy, up) = (lent.output("dy")?, lent.output("up")?);
        GluBackward::over_dy_and_up(dy, lent.input("gate")?, up)
    } else if over(&lent, "gate", "dy") {
        let (gate, dy) = (lent.output("gate")?, lent.output("dy")?);
        GluBackward::over_gate_and_dy(dy, gate, lent.input("up")?)
    } else if lent.stands_in("dgate", "gate") {
        let gate = lent.output("gate")?;
        GluBackward::dgate_over_gate(lent.input("dy")?, gate, lent.input("up")?)
    } else if lent.stands_in("dgate", "dy") {
        let dy = lent.output("dy")?;
        GluBackward::dgate_over_dy(dy, lent.input("gate")?, lent.input("up")?)
    } else if lent.stands_in("dup", "up") {
        let up = lent.output("up")?;
        GluBackward::dup_over_up(lent.input("dy")?, lent.input("gate")?, up)
    } else if lent.stands_in("dup", "dy") {
        let dy = lent.output("dy")?;
        GluBackward::dup_over_dy(dy, lent.input("gate")?, lent.input("up")?)
    } else {
        GluBackward::new(lent.input("dy")?, lent.input("gate")?, lent.input("up")?)
    };
    if over(&lent, "dgate", "dgate") {
        let (dgate, dup) = lent.outputs("dgate")?;
        call = call.dgate(dgate).dup(dup);
    } else {
        if lent.stands_in("dgate", "dgate") {
            call = call.dgate(lent.output("dgate")?);
        }
        if lent.stands_in("dup", "dup") {
            call = call.dup(lent.output("dup")?);
        }
    }
    let overlap = vector.number::<u32>("flags") & sys::RMSNORM_FLAG_OVERLAP != 0;
    call.activation(activation(vector)).overlap(overlap).run(context)
}

fn run(
    context: &Context,
    vector: &Vector,
    memories: &mut HashMap<String, Memory>,
) -> Result<(), Error> {
    let lent = Lent::new(vector, memories);
    match vector.text("op") {
        "forward" => run_forward(context, lent),
        "backward" => run_backward(context, lent),
        "glu_forward" => run_glu_forward(context, lent),
        "glu_backward" => run_glu_backward(context, lent),
        other => panic!("op {other}"),
    }
}

fn check_all(context: &Context) {
    let (vectors, data) = vectors();
    for vector in vectors.iter().filter(|vector| vector.text("status") == "0") {
        let name = vector.text("name");
        let mut memories = vector.memories(&data, "before");
        run(context, vector, &mut memories).unwrap_or_else(|error| panic!("{name}: {error}"));
        expect_memories(name, &memories, &vector.memories(&data, "after"));
    }
}

#[test]
fn views() {
    check_all(&Context::cpu().unwrap());
}

#[test]
fn views_on_threads_of_the_library() {
    check_all(&Context::options().cpu_threads(2).create().unwrap());
}

#[cfg(feature = "rayon")]
#[test]
fn views_on_rayon() {
    check_all(&Context::options().rayon().create().unwrap());
}

/// The refusals that views can express reach the library, whose code and text come back.
#[test]
fn refusals() {
    let expressible = [
        "cols_0",
        "eps_negative",
        "weight_offset_too_large",
        "rows_coincide",
        "rows_overlap",
        "groups_overlap",
        "residual_out_alone",
        "no_output",
        "own_weights_shared_gradient",
        "shared_weight_own_gradients",
    ];
    let context = Context::cpu().unwrap();
    let (vectors, data) = vectors();
    let mut refused = 0;
    for vector in &vectors {
        let name = vector.text("name");
        let Some((_, rule)) = name.split_once("_error_") else {
            continue;
        };
        if !expressible.contains(&rule) {
            continue;
        }
        let mut memories = vector.memories(&data, "before");
        let error = run(&context, vector, &mut memories).expect_err(name);
        assert_eq!(error.code(), vector.number::<i32>("status"), "{name}: {error}");
        assert!(error.text().starts_with(vector.text("error")), "{name}: {error}");
        expect_memories(name, &memories, &vector.memories(&data, "after"));
        refused += 1;
    }
    assert_eq!(refused, 23);
}
