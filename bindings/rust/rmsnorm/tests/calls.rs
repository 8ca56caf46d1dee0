//! What the vectors do not show: shapes of views, options of contexts, refusals by this crate.
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use rmsnorm::rmsnorm_sys as sys;
use rmsnorm::{
    Backward, Context, Device, DeviceView, DeviceViewMut, Error, ErrorKind, Forward, GluBackward,
    GluForward, Launch, View, ViewMut,
};

/// The same numbers in every run, about N(0, 1).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| (next() + next() + next() + next() - 2.0) * 1.7).collect()
}

fn norm(context: &Context, x: &[f32], weight: &[f32], cols: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let (from, to) = (View::rows(x, cols).unwrap(), ViewMut::rows(&mut y, cols).unwrap());
    Forward::new(from, to).weight(weight).run(context).unwrap();
    y
}

fn code_of<T: std::fmt::Debug>(result: Result<T, Error>, text: &str) -> i32 {
    let error = result.unwrap_err();
    assert!(error.text().contains(text), "{text} is not in: {error}");
    assert!(!error.text().contains('\n'));
    error.code()
}

#[test]
fn a_context_goes_between_threads() {
    fn is_both<T: Send + Sync>() {}
    is_both::<Context>();
    is_both::<View<f32>>();
    is_both::<ViewMut<f32>>();
    is_both::<Error>();
    let context = Arc::new(Context::cpu().unwrap());
    let (x, weight) = (numbers(64 * 128, 1), numbers(128, 2));
    let expected = norm(&context, &x, &weight, 128);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(norm(&context, &x, &weight, 128), expected);
                }
            });
        }
    });
}

/// q and k inside packed rows [q | k | v], in place; v stays as it is.
#[test]
fn heads_inside_packed_rows() {
    let context = Context::cpu().unwrap();
    let (tokens, heads, dim) = (5, 4, 16);
    let width = heads * dim;
    let before: Vec<bf16> =
        numbers(tokens * 3 * width, 3).into_iter().map(bf16::from_f32).collect();
    let weight = numbers(dim, 4);
    let mut packed = before.clone();
    let rows = ViewMut::rows(&mut packed, 3 * width).unwrap();
    let (q, rest) = rows.split_cols(width).unwrap();
    let (k, v) = rest.split_cols(width).unwrap();
    assert_eq!(v.shape(), [tokens, 1, width]);
    for part in [q, k] {
        let heads_of_part = part.into_groups(heads).unwrap();
        assert_eq!(heads_of_part.shape(), [tokens, heads, dim]);
        Forward::in_place(heads_of_part).weight(&weight).run(&context).unwrap();
    }
    for token in 0..tokens {
        for head in 0..3 * heads {
            let at = (token * 3 * heads + head) * dim;
            let mut expected = before[at..at + dim].to_vec();
            if head < 2 * heads {
                Forward::in_place(&mut expected).weight(&weight).run(&context).unwrap();
            }
            assert_eq!(packed[at..at + dim], expected);
        }
    }
}

/// Vectors per group and rstd may be matrices or plain slices.
#[test]
fn forms_of_vectors() {
    let context = Context::cpu().unwrap();
    let (rows, groups, cols) = (3, 2, 8);
    let x = numbers(rows * groups * cols, 5);
    let weight = numbers(groups * cols, 6);
    let view = View::groups(&x, groups, cols).unwrap();
    let mut results = Vec::new();
    for form in 0..3 {
        let mut y = vec![0f32; x.len()];
        let mut rstd = vec![0f32; rows * groups];
        let call = Forward::new(view, ViewMut::groups(&mut y, groups, cols).unwrap());
        match form {
            0 => call
                .weight(View::groups(&weight, groups, cols).unwrap())
                .rstd(ViewMut::groups(&mut rstd, groups, 1).unwrap()),
            1 => call
                .weight(View::rows(&weight, cols).unwrap())
                .rstd(ViewMut::rows(&mut rstd, groups).unwrap()),
            _ => call
                .weight(View::strided(&weight, 0, [1, groups, cols], [0, cols as isize]).unwrap())
                .rstd(&mut rstd),
        }
        .run(&context)
        .unwrap();
        results.push((y, rstd));
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
    assert!(results[0].1.iter().all(|&rstd| rstd > 0.0));
}

#[test]
fn accumulates_and_tells_its_kernel() {
    let context = Context::cpu().unwrap();
    let (mut once, mut dweight) = ([0f32; 4], [0f32; 4]);
    let (x, dy) = ([1f32, 2.0, 3.0, 4.0], [1f32; 4]);
    Backward::new(&dy, &x).dweight(&mut once).run(&context).unwrap();
    for _ in 0..2 {
        let call = Backward::new(&dy, &x).dweight(&mut dweight).accumulate(true);
        assert!(call.kernel_name(&context).unwrap().contains("backward"));
        call.workspace_size(&context).unwrap();
        call.run(&context).unwrap();
    }
    assert_eq!(dweight, once.map(|value| 2.0 * value));
}

#[test]
fn mismatches_name_the_argument() {
    let context = Context::cpu().unwrap();
    let x = numbers(24, 7);
    let view = View::rows(&x, 4).unwrap();
    let (mut y, mut short) = (vec![1f32; 24], vec![1f32; 20]);
    let shape = sys::RMSNORM_ERROR_SHAPE;

    let to = ViewMut::rows(&mut short, 4).unwrap();
    let result = Forward::new(view, to).run(&context);
    assert_eq!(code_of(result, "y is 5 x 1 x 4, but with x of 6 x 1 x 4"), shape);
    for (length, text) in [(3, "weight is 1 x 1 x 3"), (5, "weight is 1 x 1 x 5")] {
        let weight = numbers(length, 8);
        let to = ViewMut::rows(&mut y, 4).unwrap();
        assert_eq!(code_of(Forward::new(view, to).weight(&weight).run(&context), text), shape);
    }
    let mut rstd = [0f32; 5];
    let to = ViewMut::rows(&mut y, 4).unwrap();
    let result = Forward::new(view, to).rstd(&mut rstd).run(&context);
    assert_eq!(code_of(result, "rstd is 1 x 1 x 5, but with x of 6 x 1 x 4"), shape);
    let result = Backward::new(&x[..20], view).dx(ViewMut::rows(&mut y, 4).unwrap()).run(&context);
    assert_eq!(code_of(result, "dy is 1 x 1 x 20"), shape);
    let mut dweight = [0f32; 8];
    let halves = View::groups(&x, 2, 4).unwrap();
    for coinciding in [[1, 2, 4], [2, 1, 4]] {
        let per_group = ViewMut::strided(&mut dweight, 0, coinciding, [0, 0]).unwrap();
        let result = Backward::new(halves, halves).dweight(per_group).run(&context);
        assert_eq!(code_of(result, "dweight.group_stride = 0"), sys::RMSNORM_ERROR_STRIDE);
    }

    let fp64 = [1f64; 4];
    let to = ViewMut::rows(&mut y, 4).unwrap();
    let result = Forward::new(view, to).weight(&fp64).run(&context);
    assert_eq!(code_of(result, "weight.dtype is fp64"), sys::RMSNORM_ERROR_DTYPE);
    let to = ViewMut::rows(&mut y, 4).unwrap();
    let error = Forward::new(view, to).eps(f64::NAN).run(&context).unwrap_err();
    assert_eq!((error.code(), error.kind()), (sys::RMSNORM_ERROR_VALUE, ErrorKind::Argument));
    assert!(error.text().starts_with("eps = "), "{error}");
    assert!(y.iter().all(|&value| value == 1.0), "a refused call has written");
}

#[test]
fn views_stay_inside_their_slice() {
    let data = [0f32; 12];
    let stride = sys::RMSNORM_ERROR_STRIDE;
    View::strided(&data, 8, [3, 1, 4], [-4, 0]).unwrap();
    View::strided(&data, 0, [3, 1, 4], [0, isize::MAX]).unwrap(); // not read: one group
    for (offset, shape, strides) in [
        (0, [3, 1, 4], [5, 0]),
        (7, [3, 1, 4], [-4, 0]),
        (1, [3, 1, 4], [4, 0]),
        (13, [1, 1, 1], [0, 0]),
        (usize::MAX, [1, 1, 1], [0, 0]),
        (0, [usize::MAX, usize::MAX, usize::MAX], [isize::MAX, isize::MAX]),
        (0, [usize::MAX, usize::MAX, usize::MAX], [isize::MIN, isize::MIN]),
        (usize::MAX, [usize::MAX, 2, 3], [isize::MIN, isize::MAX]),
    ] {
        assert_eq!(code_of(View::strided(&data, offset, shape, strides), "12 elements"), stride);
    }
    let shape = sys::RMSNORM_ERROR_SHAPE;
    for (groups, cols) in [(1, 5), (1, 0), (0, 3), (usize::MAX, usize::MAX), (1, usize::MAX)] {
        assert_eq!(code_of(View::groups(&data, groups, cols), "12 elements"), shape);
    }
    let rows = View::rows(&data, 4).unwrap();
    assert_eq!(code_of(rows.split_cols(5), "col = 5"), shape);
    assert_eq!(code_of(rows.into_groups(3), "groups = 3"), shape);
    assert_eq!(code_of(rows.into_groups(0), "groups = 0"), shape);
    let mut data = data;
    let overlapping = ViewMut::strided(&mut data, 0, [3, 1, 4], [2, 0]).unwrap();
    assert_eq!(code_of(overlapping.split_cols(2), "overlap"), stride);
}

/// 0 groups are no elements, though to the C interface they are 1.
#[test]
fn no_groups_are_nothing() {
    let context = Context::cpu().unwrap();
    let (x, mut y) = ([1f32; 8], [7f32; 8]);
    let to = ViewMut::strided(&mut y, 0, [2, 0, 4], [4, 4]).unwrap();
    Forward::new(View::strided(&x, 0, [2, 0, 4], [4, 4]).unwrap(), to).run(&context).unwrap();
    assert_eq!(y, [7f32; 8]);
    let none = View::strided(&x, 0, [2, 0, 4], [4, 4]).unwrap();
    Backward::new(none, none).dweight(&mut y[..4]).run(&context).unwrap();
    assert_eq!(y[..4], [0f32; 4]);
    let no_vector = ViewMut::strided(&mut y, 8, [1, 0, 4], [0, 4]).unwrap();
    let result = Backward::new(none, none).dweight(no_vector).run(&context);
    assert_eq!(code_of(result, "dweight is 1 x 0 x 4"), sys::RMSNORM_ERROR_SHAPE);
}

/// Whatever numbers views are made with, a call is done or refused, and stays inside its slices.
#[test]
fn nothing_panics() {
    const GUARD: usize = 256;
    let context = Context::cpu().unwrap();
    let sizes = [0, 1, 1, 2, 3, 4, 7, 1 << 20, usize::MAX / 2, usize::MAX];
    let strides = [0, 1, -1, 2, -3, 4, 7, 12, isize::MAX, isize::MIN];
    let data = numbers(64, 9);
    let mut state = 1u64;
    let mut pick = |count: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) as usize % count
    };
    let mut done = [0; 4];
    let mut outputs: Vec<Vec<f32>> = vec![vec![7.0; 64 + 2 * GUARD]; 4];
    for _ in 0..60_000 {
        let main = [sizes[pick(10)], sizes[pick(10)], sizes[pick(10)]];
        let mut layout = |kind: usize| {
            let usual = match kind {
                0 => main,
                1 => [1, if pick(2) == 0 { 1 } else { main[1] }, main[2]],
                _ => [main[0], main[1], 1],
            };
            let shape = if pick(8) == 0 { [pick(4), pick(4), pick(4)] } else { usual };
            let packed = [shape[1].wrapping_mul(shape[2]) as isize, shape[2] as isize];
            let odd = [strides[pick(10)], strides[pick(10)]];
            (31 * pick(2), shape, if pick(3) == 0 { odd } else { packed })
        };
        let input = |(offset, shape, strides)| View::strided(&data, offset, shape, strides);
        let (x, residual, rstd) = (input(layout(0)), input(layout(0)), input(layout(2)));
        let mut views = outputs.iter_mut().zip([layout(0), layout(0), layout(1), layout(2)]).map(
            |(memory, (offset, shape, strides))| {
                ViewMut::strided(&mut memory[GUARD..64 + GUARD], offset, shape, strides)
            },
        );
        let mut output = || views.next().unwrap();
        let (first, second, vector, per_row) = (output(), output(), output(), output());
        let operation = pick(4);
        let run = || match operation {
            0 => {
                let call = Backward::new(residual?, x?).dx(first?).dresidual(second?);
                call.dweight(vector?).rstd(rstd?).run(&context)
            }
            1 => {
                let call = Forward::new(x?, first?).residual(residual?).residual_out(second?);
                call.rstd(per_row?).run(&context)
            }
            2 => GluForward::new(x?, residual?, first?).run(&context),
            _ => GluBackward::dgate_over_dy(first?, x?, residual?).dup(second?).run(&context),
        };
        done[operation] += usize::from(run().is_ok());
        for memory in &outputs {
            let (low, high) = (&memory[..GUARD], &memory[64 + GUARD..]);
            assert!(low.iter().chain(high).all(|&value| value == 7.0));
        }
    }
    assert!(done.iter().all(|&count| count > 300), "{done:?}");
}

#[test]
fn half_precision_beside_single() {
    let context = Context::cpu().unwrap();
    let x: Vec<f16> = numbers(3 * 8, 10).into_iter().map(f16::from_f32).collect();
    let weight = numbers(8, 11);
    let mut y = vec![bf16::ZERO; x.len()];
    Forward::new(View::rows(&x, 8).unwrap(), ViewMut::rows(&mut y, 8).unwrap())
        .weight(&weight)
        .run(&context)
        .unwrap();
    for (row, result) in x.chunks(8).zip(y.chunks(8)) {
        let wide: Vec<f64> = row.iter().map(|value| value.to_f64()).collect();
        let mean = wide.iter().map(|value| value * value).sum::<f64>() / 8.0;
        for (i, found) in result.iter().enumerate() {
            let exact = wide[i] / (mean + 1e-6).sqrt() * f64::from(weight[i]);
            let error = (found.to_f64() - exact).abs();
            assert!(error <= 0.501 * 2f64.powi(exact.abs().log2().floor() as i32 - 7));
        }
    }
}

// ---- Contexts ------------------------------------------------------------------------------------

const LARGE: usize = 512; // rows that make a call large enough to be split

#[test]
fn parallel_for_runs_every_part_once() {
    let (x, weight) = (numbers(LARGE * 1024, 12), numbers(1024, 13));
    let expected = norm(&Context::cpu().unwrap(), &x, &weight, 1024);
    let parts = Arc::new(AtomicUsize::new(0));
    let seen = parts.clone();
    let context = Context::options()
        .parallel_for(move |count, task| {
            seen.fetch_add(count, Ordering::Relaxed);
            std::thread::scope(|scope| {
                for first in 0..3 {
                    scope.spawn(move || (first..count).step_by(3).for_each(task));
                }
            });
            // Once more, and beyond: neither does anything.
            (0..count + 5).for_each(task);
        })
        .create()
        .unwrap();
    assert_eq!(norm(&context, &x, &weight, 1024), expected);
    assert!(parts.load(Ordering::Relaxed) > 1, "the call was not split");
}

#[test]
fn parallel_for_that_leaves_parts_out_is_an_error() {
    let x = numbers(LARGE * 1024, 14);
    let forgets = Context::options().parallel_for(|count, task| (1..count).for_each(task));
    let panics = Context::options().parallel_for(|_, _| std::panic::panic_any("out of threads"));
    for options in [forgets, panics] {
        let context = options.create().unwrap();
        let mut y = vec![0f32; x.len()];
        let to = ViewMut::rows(&mut y, 1024).unwrap();
        let result = Forward::new(View::rows(&x, 1024).unwrap(), to).run(&context);
        assert_eq!(code_of(result, "parallel_for"), sys::RMSNORM_ERROR_CALLBACK);
    }
}

#[test]
fn log_is_told_each_call() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let written = lines.clone();
    let context = Context::options()
        .log(move |line| written.lock().unwrap().push(line.to_string()))
        .create()
        .unwrap();
    let mut x = [1f32, 2.0];
    Forward::in_place(&mut x).run(&context).unwrap();
    assert!(Forward::in_place(&mut x).eps(-1.0).run(&context).is_err());
    let lines = lines.lock().unwrap();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("cols=2"), "{}", lines[0]);

    let panicking = Context::options().log(|_| std::panic::panic_any("log")).create().unwrap();
    Forward::in_place(&mut x).run(&panicking).unwrap();
}

#[test]
fn options_are_refused_with_their_name() {
    let both = Context::options().cpu_threads(2).parallel_for(|_, _| ());
    assert_eq!(code_of(both.create(), "cpu_threads"), sys::RMSNORM_ERROR_VALUE);
    let many = Context::options().cpu_threads(usize::MAX);
    assert_eq!(code_of(many.create(), "cpu_threads"), sys::RMSNORM_ERROR_VALUE);
    let error = Context::cuda(1000).unwrap_err(); // no machine has so many
    assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Argument), "{error}");
}

#[test]
fn device_memory_is_not_for_the_cpu() {
    let context = Context::cpu().unwrap();
    let element = 1f32;
    // SAFETY: no call takes them.
    let x = unsafe { DeviceView::from_raw_parts(&raw const element, [1, 1, 1], [0, 0]) };
    // SAFETY: as above.
    let on_device =
        || unsafe { DeviceViewMut::<f32>::from_raw_parts(null_mut(), [1, 1, 1], [0, 0]) };
    let y = on_device();
    let result = Forward::new(x, y).run(&context);
    assert_eq!(code_of(result, "x is in a device's"), sys::RMSNORM_ERROR_DEVICE);
    // SAFETY: it is refused.
    let result = unsafe { Forward::in_place(on_device()).launch(&context, &Launch::default()) };
    assert_eq!(code_of(result, "x is in a device's"), sys::RMSNORM_ERROR_DEVICE);
    let mut on_host = [1f32];
    // SAFETY: it is refused.
    let result = unsafe { Forward::in_place(&mut on_host).launch(&context, &Launch::default()) };
    assert_eq!(code_of(result, "x is in host memory"), sys::RMSNORM_ERROR_DEVICE);
    let result = Forward::new(&on_host, on_device()).run(&context);
    assert_eq!(code_of(result, "y is in other memory"), sys::RMSNORM_ERROR_DEVICE);
}

#[test]
fn what_there_is() {
    assert_eq!(rmsnorm::version().unwrap().0, 0);
    assert!(rmsnorm::build_info().unwrap().contains("cuda="));
    let devices = rmsnorm::devices().unwrap();
    assert_eq!(devices[0].device, Device::Cpu);
    assert!(devices[0].supported && devices[0].processors > 0 && !devices[0].isa.is_empty());
}
