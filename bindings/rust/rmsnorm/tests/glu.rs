//! Gated activations: against their formulas, in views and in place, and what is refused.
mod exact;

use exact::{expect_near, glu, numbers, wide, Gradient, Real};
use half::{bf16, f16};
use rmsnorm::rmsnorm_sys as sys;
use rmsnorm::{
    Activation, Context, DeviceView, DeviceViewMut, Dtype, Error, GluBackward, GluForward, Launch,
    View, ViewMut,
};

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

fn rows<T: rmsnorm::Element>(data: &[T], cols: usize) -> View<'_, T> {
    View::rows(data, cols).unwrap()
}

fn rows_mut<T: rmsnorm::Element>(data: &mut [T], cols: usize) -> ViewMut<'_, T> {
    ViewMut::rows(data, cols).unwrap()
}

// ---- Results -------------------------------------------------------------------------------------

/// Moderate gates, and tails as far as f64's formulas are exact enough for the type: far below 0
/// they magnify the rounding of exp's argument.
fn gates<T: Real>(count: usize) -> Vec<T> {
    let mut gates = numbers::<T>(count, 21);
    let tails = [0.0, -0.0, 1e-6, -1e-6, 5.5, -5.5, 9.0, -9.0, 13.5, -13.5, 60.0, 300.0];
    for (gate, tail) in gates.iter_mut().step_by(5).zip(tails) {
        if T::DTYPE != Dtype::F64 || tail > -1.0 {
            *gate = T::rounded(tail);
        }
    }
    gates
}

/// By the header's bounds. f64's results are judged by f64's formulas, whose own errors are allowed
/// for: 2^-49.
fn judge<T: Real>(what: &str, found: &[T], exact: &[Gradient]) {
    let (ulps, own) = match T::DTYPE {
        Dtype::F64 => (2.0, 2f64.powi(-49)),
        _ => (0.501, 0.0),
    };
    let share = if what == "dgate" { 2f64.powi(-40) } else { own };
    assert_eq!(found.len(), exact.len());
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        expect_near(&format!("{what}[{i}]"), found.wide(), *exact, T::DTYPE, ulps, share);
    }
}

fn check<T: Real>(context: &Context) {
    const COLS: usize = 37;
    let gate: Vec<T> = gates(5 * COLS);
    let (up, dy) = (numbers::<T>(gate.len(), 22), numbers::<T>(gate.len(), 23));
    let (wide_gate, wide_up, wide_dy) = (wide(&gate), wide(&up), wide(&dy));
    for activation in ACTIVATIONS {
        let (mut y, mut dgate, mut dup) = (gate.clone(), gate.clone(), gate.clone());
        GluForward::new(rows(&gate, COLS), rows(&up, COLS), rows_mut(&mut y, COLS))
            .activation(activation)
            .run(context)
            .unwrap();
        GluBackward::new(rows(&dy, COLS), rows(&gate, COLS), rows(&up, COLS))
            .dgate(rows_mut(&mut dgate, COLS))
            .dup(rows_mut(&mut dup, COLS))
            .activation(activation)
            .run(context)
            .unwrap();
        let (mut exact_y, mut exact_dgate, mut exact_dup) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..gate.len() {
            exact_y.push(glu::y(activation, wide_gate[i], wide_up[i]));
            let (dgate, dup) = glu::gradients(activation, wide_dy[i], wide_gate[i], wide_up[i]);
            exact_dgate.push(dgate);
            exact_dup.push(dup);
        }
        judge("y", &y, &exact_y);
        judge("dgate", &dgate, &exact_dgate);
        judge("dup", &dup, &exact_dup);
    }
}

#[test]
fn every_type_and_activation() {
    let context = Context::cpu().unwrap();
    check::<f32>(&context);
    check::<f16>(&context);
    check::<bf16>(&context);
    check::<f64>(&context);
}

#[test]
fn silu_unless_another_is_given() {
    let context = Context::cpu().unwrap();
    assert_eq!(Activation::default(), Activation::Silu);
    let (gate, up) = ([1f32, -2.0], [1f32; 2]);
    let (mut by_itself, mut named) = ([0f32; 2], [1f32; 2]);
    GluForward::new(&gate, &up, &mut by_itself).run(&context).unwrap();
    GluForward::new(&gate, &up, &mut named).activation(Activation::Silu).run(&context).unwrap();
    assert_eq!(by_itself, named);
}

/// Each tensor of a type of its own.
#[test]
fn types_mix() {
    let context = Context::cpu().unwrap();
    let gate: Vec<bf16> = numbers(40, 24);
    let up: Vec<f16> = numbers(40, 25);
    let mut y = vec![0f32; 40];
    GluForward::new(&gate, &up, &mut y).run(&context).unwrap();
    let exact: Vec<Gradient> =
        (0..40).map(|i| glu::y(Activation::Silu, gate[i].wide(), up[i].wide())).collect();
    judge("y", &y, &exact);
}

// ---- Views ---------------------------------------------------------------------------------------

/// gate, up, dy of 6 x 8, and what the calls give for them apart.
struct Apart {
    gate: Vec<f32>,
    up: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dgate: Vec<f32>,
    dup: Vec<f32>,
}

const COLS: usize = 8;

impl Apart {
    fn new(context: &Context) -> Apart {
        let [gate, up, dy] = [31, 32, 33].map(|seed| numbers::<f32>(6 * COLS, seed));
        let [mut y, mut dgate, mut dup] = [(); 3].map(|()| vec![7f32; 6 * COLS]);
        GluForward::new(rows(&gate, COLS), rows(&up, COLS), rows_mut(&mut y, COLS))
            .run(context)
            .unwrap();
        GluBackward::new(rows(&dy, COLS), rows(&gate, COLS), rows(&up, COLS))
            .dgate(rows_mut(&mut dgate, COLS))
            .dup(rows_mut(&mut dup, COLS))
            .run(context)
            .unwrap();
        Apart { gate, up, dy, y, dgate, dup }
    }
}

/// Rows of [left | right].
fn pack(left: &[f32], right: &[f32]) -> Vec<f32> {
    left.chunks(COLS).zip(right.chunks(COLS)).flat_map(|(l, r)| [l, r].concat()).collect()
}

#[test]
fn packed_rows() {
    let context = Context::cpu().unwrap();
    let apart = Apart::new(&context);
    let packed = pack(&apart.gate, &apart.up);
    let (gate, up) = rows(&packed, 2 * COLS).split_cols(COLS).unwrap();
    let mut y = vec![7f32; 6 * COLS];
    GluForward::new(gate, up, rows_mut(&mut y, COLS)).run(&context).unwrap();
    assert_eq!(y, apart.y);

    let mut gradients = vec![7f32; packed.len()];
    let (dgate, dup) = rows_mut(&mut gradients, 2 * COLS).split_cols(COLS).unwrap();
    GluBackward::new(rows(&apart.dy, COLS), gate, up).dgate(dgate).dup(dup).run(&context).unwrap();
    assert_eq!(gradients, pack(&apart.dgate, &apart.dup));

    // y in the place of gate; up stays.
    let mut memory = packed.clone();
    let (gate, up) = rows_mut(&mut memory, 2 * COLS).split_cols(COLS).unwrap();
    GluForward::y_over_gate(gate, up.as_view()).run(&context).unwrap();
    assert_eq!(memory, pack(&apart.y, &apart.up));

    let mut memory = packed;
    let (gate, up) = rows_mut(&mut memory, 2 * COLS).split_cols(COLS).unwrap();
    GluBackward::over_gate_and_up(rows(&apart.dy, COLS), gate, up).run(&context).unwrap();
    assert_eq!(memory, pack(&apart.dgate, &apart.dup));
}

/// Groups, rows from last to first, and one row of up for all.
#[test]
fn strides() {
    let context = Context::cpu().unwrap();
    let apart = Apart::new(&context);
    let in_groups = |data| View::groups(data, 3, COLS).unwrap();
    let mut y = vec![7f32; 6 * COLS];
    let to = ViewMut::groups(&mut y, 3, COLS).unwrap();
    GluForward::new(in_groups(&apart.gate), in_groups(&apart.up), to).run(&context).unwrap();
    assert_eq!(y, apart.y);

    let back = |data| View::strided(data, 5 * COLS, [6, 1, COLS], [-(COLS as isize), 0]).unwrap();
    let mut y = vec![7f32; 6 * COLS];
    let to = ViewMut::strided(&mut y, 5 * COLS, [6, 1, COLS], [-(COLS as isize), 0]).unwrap();
    GluForward::new(back(&apart.gate), back(&apart.up), to).run(&context).unwrap();
    assert_eq!(y, apart.y);

    let one = View::strided(&apart.up[..COLS], 0, [6, 1, COLS], [0, 0]).unwrap();
    let repeated = apart.up[..COLS].repeat(6);
    let (mut y, mut expected) = (vec![7f32; 6 * COLS], vec![8f32; 6 * COLS]);
    let gate = rows(&apart.gate, COLS);
    GluForward::new(gate, one, rows_mut(&mut y, COLS)).run(&context).unwrap();
    GluForward::new(gate, rows(&repeated, COLS), rows_mut(&mut expected, COLS))
        .run(&context)
        .unwrap();
    assert_eq!(y, expected);
}

/// The bits are the same wherever the results go, and what is only read stays.
#[test]
fn in_place() {
    let context = Context::cpu().unwrap();
    let apart = Apart::new(&context);
    let [gate, up, dy] = [&apart.gate, &apart.up, &apart.dy].map(|data| rows(data, COLS));

    let mut memory = apart.gate.clone();
    GluForward::y_over_gate(rows_mut(&mut memory, COLS), up).run(&context).unwrap();
    assert_eq!(memory, apart.y);
    let mut memory = apart.up.clone();
    GluForward::y_over_up(gate, rows_mut(&mut memory, COLS)).run(&context).unwrap();
    assert_eq!(memory, apart.y);

    let mut memory = apart.gate.clone();
    GluBackward::dgate_over_gate(dy, rows_mut(&mut memory, COLS), up).run(&context).unwrap();
    assert_eq!(memory, apart.dgate);
    let mut memory = apart.dy.clone();
    GluBackward::dgate_over_dy(rows_mut(&mut memory, COLS), gate, up).run(&context).unwrap();
    assert_eq!(memory, apart.dgate);
    let mut memory = apart.up.clone();
    GluBackward::dup_over_up(dy, gate, rows_mut(&mut memory, COLS)).run(&context).unwrap();
    assert_eq!(memory, apart.dup);
    let (mut memory, mut dgate) = (apart.dy.clone(), vec![7f32; 6 * COLS]);
    GluBackward::dup_over_dy(rows_mut(&mut memory, COLS), gate, up)
        .dgate(rows_mut(&mut dgate, COLS))
        .run(&context)
        .unwrap();
    assert_eq!((memory, dgate), (apart.dup.clone(), apart.dgate.clone()));

    let (mut first, mut second) = (apart.dy.clone(), apart.up.clone());
    GluBackward::over_dy_and_up(rows_mut(&mut first, COLS), gate, rows_mut(&mut second, COLS))
        .run(&context)
        .unwrap();
    assert_eq!((first, second), (apart.dgate.clone(), apart.dup.clone()));
    let (mut first, mut second) = (apart.dy.clone(), apart.gate.clone());
    GluBackward::over_gate_and_dy(rows_mut(&mut first, COLS), rows_mut(&mut second, COLS), up)
        .run(&context)
        .unwrap();
    assert_eq!((first, second), (apart.dup, apart.dgate));
}

#[test]
fn no_elements_are_nothing() {
    let context = Context::cpu().unwrap();
    let (x, mut y) = ([1f32; 8], [7f32; 8]);
    for shape in [[0, 1, 4], [2, 0, 4]] {
        let none = View::strided(&x, 0, shape, [4, 4]).unwrap();
        let to = ViewMut::strided(&mut y, 0, shape, [4, 4]).unwrap();
        GluForward::new(none, none, to).run(&context).unwrap();
        let to = ViewMut::strided(&mut y, 0, shape, [4, 4]).unwrap();
        GluBackward::new(none, none, none).dgate(to).run(&context).unwrap();
    }
    assert_eq!(y, [7f32; 8]);
}

#[test]
fn tells_its_kernel_and_workspace() {
    let context = Context::cpu().unwrap();
    let (x, mut y) = ([1f32; 8], [0f32; 8]);
    let forward = GluForward::new(&x, &x, &mut y).overlap(true);
    assert!(forward.kernel_name(&context).unwrap().contains("glu"));
    forward.workspace_size(&context).unwrap();
    forward.run(&context).unwrap();
    let backward = GluBackward::new(&x, &x, &x).dup(&mut y).overlap(true);
    assert!(backward.kernel_name(&context).unwrap().contains("glu"));
    backward.workspace_size(&context).unwrap();
    backward.run(&context).unwrap();
}

// ---- Refusals ------------------------------------------------------------------------------------

fn expect_refusal(result: Result<(), Error>, code: i32, start: &str) {
    let error = result.unwrap_err();
    assert!(error.text().starts_with(start), "{start} does not begin: {error}");
    assert!(!error.text().contains('\n'));
    assert_eq!(error.code(), code, "{error}");
}

#[test]
fn shapes_are_refused_by_name() {
    let context = Context::cpu().unwrap();
    let shape = sys::RMSNORM_ERROR_SHAPE;
    let right = numbers::<f32>(6 * COLS, 41);
    let of_six = rows(&right, COLS);
    let of_five = rows(&right[COLS..], COLS);
    let (mut six, mut five) = (vec![7f32; 6 * COLS], vec![7f32; 5 * COLS]);
    let text =
        |name| format!("{name} is 5 x 1 x 8, but with gate of 6 x 1 x 8 it must be 6 x 1 x 8");

    macro_rules! refused {
        ($name:literal, $call:expr) => {
            expect_refusal($call.run(&context), shape, &text($name));
        };
    }
    let y = &mut five;
    refused!("y", GluForward::new(of_six, of_six, rows_mut(y, COLS)));
    refused!("up", GluForward::y_over_up(of_six, rows_mut(y, COLS)));
    refused!("dgate", GluBackward::new(of_six, of_six, of_six).dgate(rows_mut(y, COLS)));
    refused!("dup", GluBackward::new(of_six, of_six, of_six).dup(rows_mut(y, COLS)));
    refused!("dy", GluBackward::dgate_over_dy(rows_mut(y, COLS), of_six, of_six));
    refused!("dy", GluBackward::dup_over_dy(rows_mut(y, COLS), of_six, of_six));
    refused!("up", GluBackward::dup_over_up(of_six, of_six, rows_mut(y, COLS)));
    let y = &mut six;
    refused!("up", GluForward::new(of_six, of_five, rows_mut(y, COLS)));
    refused!("up", GluForward::y_over_gate(rows_mut(y, COLS), of_five));
    refused!("dy", GluBackward::new(of_five, of_six, of_six).dup(rows_mut(y, COLS)));
    refused!("up", GluBackward::new(of_six, of_six, of_five).dgate(rows_mut(y, COLS)));
    refused!("up", GluBackward::dgate_over_gate(of_six, rows_mut(y, COLS), of_five));
    // The shape is gate's, not that of as many elements.
    let result = GluForward::new(of_six, &right, rows_mut(y, COLS)).run(&context);
    expect_refusal(result, shape, "up is 1 x 1 x 48");
    assert!(six.iter().chain(&five).all(|&value| value == 7.0), "a refused call has written");
}

#[test]
fn the_library_refuses_by_name() {
    let context = Context::cpu().unwrap();
    let x = numbers::<f32>(6 * COLS, 42);
    let of_six = rows(&x, COLS);
    let mut y = vec![7f32; 6 * COLS];

    let result = GluBackward::new(of_six, of_six, of_six).run(&context);
    expect_refusal(result, sys::RMSNORM_ERROR_NULL, "dgate and dup are both absent");

    let wide = vec![1f64; 6 * COLS];
    let dtype = sys::RMSNORM_ERROR_DTYPE;
    let result = GluForward::new(of_six, rows(&wide, COLS), rows_mut(&mut y, COLS)).run(&context);
    expect_refusal(result, dtype, "up.dtype is fp64");
    let result = GluBackward::new(rows(&wide, COLS), of_six, of_six)
        .dgate(rows_mut(&mut y, COLS))
        .run(&context);
    expect_refusal(result, dtype, "dy.dtype is fp64");

    let stride = sys::RMSNORM_ERROR_STRIDE;
    fn overlapping(data: &mut [f32]) -> ViewMut<'_, f32> {
        ViewMut::strided(data, 0, [6, 1, COLS], [4, 0]).unwrap()
    }
    let result = GluForward::new(of_six, of_six, overlapping(&mut y)).run(&context);
    expect_refusal(result, stride, "y.row_stride = 4");
    let result = GluForward::y_over_gate(overlapping(&mut y), of_six).run(&context);
    expect_refusal(result, stride, "y.row_stride = 4");
    let result = GluBackward::new(of_six, of_six, of_six).dgate(overlapping(&mut y)).run(&context);
    expect_refusal(result, stride, "dgate.row_stride = 4");
    let result = GluBackward::dup_over_up(of_six, of_six, overlapping(&mut y)).run(&context);
    expect_refusal(result, stride, "dup.row_stride = 4");

    let none = View::strided(&x, 0, [6, 1, 0], [0, 0]).unwrap();
    let to = ViewMut::strided(&mut y, 0, [6, 1, 0], [0, 0]).unwrap();
    let result = GluForward::new(none, none, to).run(&context);
    expect_refusal(result, sys::RMSNORM_ERROR_SHAPE, "cols = 0");
    assert!(y.iter().all(|&value| value == 7.0), "a refused call has written");
}

#[test]
fn device_memory_is_not_for_the_cpu() {
    let context = Context::cpu().unwrap();
    let device = sys::RMSNORM_ERROR_DEVICE;
    let (x, mut y) = ([1f32], [7f32]);
    // SAFETY: no call takes them.
    let on_device = || unsafe { DeviceView::from_raw_parts(&raw const x[0], [1, 1, 1], [0, 0]) };
    let result = GluForward::new(on_device(), on_device(), &mut y).run(&context);
    expect_refusal(result, device, "gate is in a device's memory");
    let result = GluForward::new(&x, on_device(), &mut y).run(&context);
    expect_refusal(result, device, "up is in other memory");
    let result = GluBackward::new(on_device(), &x, &x).dgate(&mut y).run(&context);
    expect_refusal(result, device, "dy is in other memory");
    // SAFETY: as above.
    let over = unsafe { DeviceViewMut::<f32>::from_raw_parts(y.as_mut_ptr(), [1, 1, 1], [0, 0]) };
    let result = GluBackward::new(&x, &x, &x).dup(over).run(&context);
    expect_refusal(result, device, "dup is in other memory");
    let call = GluForward::new(&x, &x, &mut y);
    // SAFETY: it is refused.
    let result = unsafe { call.launch(&context, &Launch::default()) };
    expect_refusal(result, device, "gate is in host memory");
    assert_eq!(y, [7f32]);
}
