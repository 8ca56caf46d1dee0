//! CUDA through raw device pointers and, with the feature `cudarc`, through its slices. A program
//! of its own: it is built where there is no GPU, and elsewhere run as it is. The last line says
//! 'N passed, N failed, N skipped'.
mod driver;
#[path = "../exact/mod.rs"]
mod exact;

use std::panic::{catch_unwind, AssertUnwindSafe};

use driver::Driver;
use exact::{expect_near, numbers, wide, Gradient, Real};
use half::{bf16, f16};
use rmsnorm::rmsnorm_sys as sys;
use rmsnorm::{
    Activation, Backward, Context, DeviceView, DeviceViewMut, Dtype, Forward, GluBackward,
    GluForward, Launch,
};

const EPS: f64 = 1e-5;
const ROWS: usize = 257;

/// A call's data, in host memory.
struct Data<T> {
    cols: usize,
    x: Vec<T>,
    residual: Vec<T>,
    weight: Vec<T>,
    dy: Vec<T>,
    more: Vec<T>,
}

impl<T: Real> Data<T> {
    fn new(cols: usize) -> Self {
        let all = ROWS * cols;
        Data {
            cols,
            x: numbers(all, 1),
            residual: numbers(all, 2),
            weight: numbers(cols, 3),
            dy: numbers(all, 4),
            more: numbers(all, 5),
        }
    }
}

/// What the calls gave for it.
struct Results<T> {
    h: Vec<T>,
    y: Vec<T>,
    rstd: Vec<f32>,
    dx: Vec<T>,
    dweight: Vec<f32>,
}

/// By the bounds of the header's 'Numerics' for CUDA.
fn judge<T: Real>(data: &Data<T>, results: &Results<T>) {
    let bound = if T::DTYPE == Dtype::F32 { 1.0 } else { 0.51 };
    let cols = data.cols;
    let weight = wide(&data.weight);
    let mut dweight = vec![Gradient::default(); cols];
    for row in 0..ROWS {
        let part = row * cols..(row + 1) * cols;
        for i in part.clone() {
            let sum = T::rounded(data.x[i].wide() + data.residual[i].wide());
            assert_eq!(results.h[i].wide(), sum.wide(), "residual_out[{i}]");
        }
        let h = wide(&results.h[part.clone()]);
        let (y, rstd) = exact::forward(&h, &weight, EPS);
        let found = f64::from(results.rstd[row]);
        // Of a half row the sum of squares is fp32's.
        let (ulps, share) = if T::DTYPE == Dtype::F32 { (1.0, 0.0) } else { (0.5, 2f64.powi(-20)) };
        expect_near("rstd", found, Gradient { value: rstd, terms: rstd }, Dtype::F32, ulps, share);
        for (i, value) in part.clone().zip(y) {
            let exact = Gradient { value, terms: 0.0 };
            expect_near("y", results.y[i].wide(), exact, T::DTYPE, bound, 0.0);
        }
        let dy = wide(&data.dy[part.clone()]);
        let dx = exact::dx(&dy, &h, &weight, found, &wide(&data.more[part.clone()]));
        for (i, exact) in part.zip(dx) {
            let share = 2f64.powi(-19);
            expect_near("dx", results.dx[i].wide(), exact, T::DTYPE, bound, share);
        }
        for col in 0..cols {
            let term = dy[col] * h[col] * found;
            dweight[col].value += term;
            dweight[col].terms += term.abs();
        }
    }
    for (found, exact) in results.dweight.iter().zip(dweight) {
        let share = 2f64.powi(-18);
        expect_near("dweight", f64::from(*found), exact, Dtype::F32, 1.0, share);
    }
}

// ---- Raw pointers --------------------------------------------------------------------------------

fn raw_pointers<T: Real>(driver: &Driver, context: &Context) {
    for cols in [64, 1000, 4097] {
        let data = Data::<T>::new(cols);
        let (shape, strides) = ([ROWS, 1, cols], [cols as isize, 0]);
        let stream = driver.stream();
        let [x, residual, dy, more] =
            [&data.x, &data.residual, &data.dy, &data.more].map(|elements| driver.upload(elements));
        let weight = driver.upload(&data.weight);
        let [h, y, dx] = [(); 3].map(|()| driver.allocate::<T>(ROWS * cols));
        let (rstd, dweight) = (driver.allocate::<f32>(ROWS), driver.allocate::<f32>(cols));
        // SAFETY: the memory is there until wait() has returned, and each call comes after those
        // whose results it reads, in one stream.
        unsafe {
            let read = |memory: &driver::Memory<T>| {
                DeviceView::from_raw_parts(memory.address().cast_const(), shape, strides)
            };
            let write = |memory: &driver::Memory<T>| {
                DeviceViewMut::from_raw_parts(memory.address(), shape, strides)
            };
            let weight_view = || {
                let start = weight.address().cast_const();
                DeviceView::from_raw_parts(start, [1, 1, cols], [0, 0])
            };
            let each_row = ([ROWS, 1, 1], [1, 0]);
            let forward = Forward::new(read(&x), write(&y))
                .residual(read(&residual))
                .residual_out(write(&h))
                .weight(weight_view())
                .rstd(DeviceViewMut::from_raw_parts(rstd.address(), each_row.0, each_row.1))
                .eps(EPS);
            let size = forward.workspace_size(context).unwrap();
            let workspace = driver.allocate::<u8>(size.max(1));
            let mut launch =
                Launch { stream, workspace: workspace.address().cast(), workspace_size: size };
            forward.launch(context, &launch).unwrap();
            let rstd_view =
                DeviceView::from_raw_parts(rstd.address().cast_const(), each_row.0, each_row.1);
            let backward = Backward::new(read(&dy), read(&h))
                .weight(weight_view())
                .rstd(rstd_view)
                .dresidual_out(read(&more))
                .dx(write(&dx))
                .dweight(DeviceViewMut::from_raw_parts(dweight.address(), [1, 1, cols], [0, 0]))
                .eps(EPS);
            let size = backward.workspace_size(context).unwrap();
            let workspace = driver.allocate::<u8>(size.max(1));
            launch.workspace = workspace.address().cast();
            launch.workspace_size = size;
            backward.launch(context, &launch).unwrap();
            driver.wait(stream);
        }
        judge(
            &data,
            &Results {
                h: h.download(),
                y: y.download(),
                rstd: rstd.download(),
                dx: dx.download(),
                dweight: dweight.download(),
            },
        );
    }
}

/// Gated activations of packed rows [gate | up], by the bounds of the header's 'Gated activations'.
fn gated<T: Real>(driver: &Driver, context: &Context) {
    let cols = 1000;
    let (packed_host, dy_host) = (numbers::<T>(ROWS * 2 * cols, 6), numbers::<T>(ROWS * cols, 7));
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        let stream = driver.stream();
        let (packed, dy) = (driver.upload(&packed_host), driver.upload(&dy_host));
        let y = driver.allocate::<T>(ROWS * cols);
        let (shape, apart) = ([ROWS, 1, cols], [2 * cols as isize, 0]);
        // SAFETY: the memory is there until wait() has returned; the calls are in one stream.
        unsafe {
            let (gate, up) = (packed.address(), packed.address().add(cols));
            let half = |start: *mut T| DeviceView::from_raw_parts(start, shape, apart);
            let over = |start: *mut T| DeviceViewMut::from_raw_parts(start, shape, apart);
            let alone = [cols as isize, 0];
            let to = DeviceViewMut::from_raw_parts(y.address(), shape, alone);
            let forward = GluForward::new(half(gate), half(up), to).activation(activation);
            let size = forward.workspace_size(context).unwrap();
            let workspace = driver.allocate::<u8>(size.max(1));
            let mut launch =
                Launch { stream, workspace: workspace.address().cast(), workspace_size: size };
            forward.launch(context, &launch).unwrap();
            let from = DeviceView::from_raw_parts(dy.address().cast_const(), shape, alone);
            let backward =
                GluBackward::over_gate_and_up(from, over(gate), over(up)).activation(activation);
            let size = backward.workspace_size(context).unwrap();
            let workspace = driver.allocate::<u8>(size.max(1));
            launch.workspace = workspace.address().cast();
            launch.workspace_size = size;
            backward.launch(context, &launch).unwrap();
            driver.wait(stream);
        }
        let (bound, share) = match (T::DTYPE, activation) {
            (Dtype::F32, Activation::Silu) => (2.0, 2f64.powi(-20)),
            (Dtype::F32, _) => (4.0, 2f64.powi(-20)),
            _ => (0.51, 2f64.powi(-17)),
        };
        let (y, gradients, dy) = (wide(&y.download()), wide(&packed.download()), wide(&dy_host));
        let packed = wide(&packed_host);
        for (i, &found) in y.iter().enumerate() {
            let at = i / cols * 2 * cols + i % cols;
            let (gate, up) = (packed[at], packed[at + cols]);
            let exact = exact::glu::y(activation, gate, up);
            expect_near("y", found, exact, T::DTYPE, bound, 0.0);
            let (dgate, dup) = exact::glu::gradients(activation, dy[i], gate, up);
            expect_near("dgate", gradients[at], dgate, T::DTYPE, bound, share);
            expect_near("dup", gradients[at + cols], dup, T::DTYPE, bound, 0.0);
        }
    }
}

fn host_views_are_refused(context: &Context) {
    let mut x = [1f32; 4];
    let error = Forward::in_place(&mut x).run(context).unwrap_err();
    assert_eq!(error.code(), sys::RMSNORM_ERROR_DEVICE, "{error}");
    assert_eq!(x, [1f32; 4]);
}

/// The driver is asked about each pointer: host memory is refused by name, nothing is launched.
fn check_pointers(driver: &Driver) {
    if driver.reads_any_host_memory() {
        return; // there is none to refuse
    }
    let context =
        Context::options().device(rmsnorm::Device::Cuda(0)).check_pointers(true).create().unwrap();
    let on_host = [1f32; 4];
    let y = driver.allocate::<f32>(4);
    // SAFETY: the call is refused.
    let error = unsafe {
        let x = DeviceView::from_raw_parts(on_host.as_ptr(), [1, 1, 4], [0, 0]);
        let y = DeviceViewMut::from_raw_parts(y.address(), [1, 1, 4], [0, 0]);
        Forward::new(x, y).launch(&context, &Launch::default()).unwrap_err()
    };
    assert_eq!(error.code(), sys::RMSNORM_ERROR_POINTER, "{error}");
    assert!(error.text().starts_with("x = 0x"), "{error}");
}

// ---- cudarc --------------------------------------------------------------------------------------

#[cfg(feature = "cudarc")]
mod with_cudarc {
    use super::*;
    use cudarc::driver::{CudaContext, DeviceRepr, ValidAsZeroBits};
    use rmsnorm::{Input, Output};

    pub fn slices<T: Real + DeviceRepr + ValidAsZeroBits>(context: &Context) {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        for cols in [128, 1000] {
            let data = Data::<T>::new(cols);
            let shape = [ROWS, 1, cols];
            let up = |elements: &Vec<T>| stream.clone_htod(elements).unwrap();
            let (x, residual, weight) = (up(&data.x), up(&data.residual), up(&data.weight));
            let (dy, more) = (up(&data.dy), up(&data.more));
            let new = || stream.alloc_zeros::<T>(ROWS * cols).unwrap();
            let (mut h, mut y, mut dx) = (new(), new(), new());
            let mut rstd = stream.alloc_zeros::<f32>(ROWS).unwrap();
            let mut dweight = stream.alloc_zeros::<f32>(cols).unwrap();
            let read = |slice| Input::cuda(slice, &stream, shape).unwrap();
            Forward::new(read(&x), Output::cuda(&mut y, &stream, shape).unwrap())
                .residual(read(&residual))
                .residual_out(Output::cuda(&mut h, &stream, shape).unwrap())
                .weight(Input::cuda(&weight, &stream, [1, 1, cols]).unwrap())
                .rstd(Output::cuda(&mut rstd, &stream, [ROWS, 1, 1]).unwrap())
                .eps(EPS)
                .run_on(context, &stream)
                .unwrap();
            Backward::new(read(&dy), read(&h))
                .weight(Input::cuda(&weight, &stream, [1, 1, cols]).unwrap())
                .rstd(Input::cuda(&rstd, &stream, [ROWS, 1, 1]).unwrap())
                .dresidual_out(read(&more))
                .dx(Output::cuda(&mut dx, &stream, shape).unwrap())
                .dweight(Output::cuda(&mut dweight, &stream, [1, 1, cols]).unwrap())
                .eps(EPS)
                .run_on(context, &stream)
                .unwrap();
            let down = |slice| stream.clone_dtoh(slice).unwrap();
            judge(
                &data,
                &Results {
                    h: down(&h),
                    y: down(&y),
                    rstd: stream.clone_dtoh(&rstd).unwrap(),
                    dx: down(&dx),
                    dweight: stream.clone_dtoh(&dweight).unwrap(),
                },
            );
        }
    }

    pub fn mismatches(context: &Context) {
        let device = CudaContext::new(0).unwrap();
        let (stream, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
        let x = stream.alloc_zeros::<f32>(8).unwrap();
        let mut y = stream.alloc_zeros::<f32>(8).unwrap();
        let error = Input::cuda(&x, &stream, [2, 1, 5]).err().unwrap();
        assert!(error.text().contains("8 elements"), "{error}");
        let from = Input::cuda(&x, &stream, [2, 1, 4]).unwrap();
        let to = Output::cuda(&mut y, &other, [2, 1, 4]).unwrap();
        let error = Forward::new(from, to).run_on(context, &stream).unwrap_err();
        assert!(error.text().starts_with("y is in other memory, or for another stream"), "{error}");
        let from = Input::cuda(&x, &stream, [2, 1, 4]).unwrap();
        let to = Output::cuda(&mut y, &stream, [2, 1, 4]).unwrap();
        let error = Forward::new(from, to).run_on(context, &other).unwrap_err();
        assert!(error.text().starts_with("x was not given for this stream"), "{error}");
    }
}

// --------------------------------------------------------------------------------------------------

type Test<'a> = (&'static str, Box<dyn Fn() + 'a>);

fn main() {
    let driver = Driver::open();
    let built = rmsnorm::build_info().map(|info| !info.contains("cuda=off"));
    let (driver, context) = match (&driver, built) {
        (Some(driver), Ok(true)) => match Context::cuda(0) {
            Ok(context) => (driver, context),
            Err(error) => {
                println!("FAILED: rust cuda: {error}\n0 passed, 1 failed, 0 skipped");
                std::process::exit(1);
            }
        },
        (_, Err(error)) => {
            println!("FAILED: rust cuda: {error}\n0 passed, 1 failed, 0 skipped");
            std::process::exit(1);
        }
        (_, built) => {
            let why =
                if built == Ok(true) { "there is no CUDA device" } else { "built without CUDA" };
            println!("skipped: rust cuda: {why}\n0 passed, 0 failed, 1 skipped");
            return;
        }
    };
    let context = &context;
    #[allow(unused_mut)]
    let mut tests: Vec<Test> = vec![
        ("raw pointers, fp32", Box::new(|| raw_pointers::<f32>(driver, context))),
        ("raw pointers, fp16", Box::new(|| raw_pointers::<f16>(driver, context))),
        ("raw pointers, bf16", Box::new(|| raw_pointers::<bf16>(driver, context))),
        ("gated activations, fp32", Box::new(|| gated::<f32>(driver, context))),
        ("gated activations, fp16", Box::new(|| gated::<f16>(driver, context))),
        ("gated activations, bf16", Box::new(|| gated::<bf16>(driver, context))),
        ("host views are refused", Box::new(|| host_views_are_refused(context))),
        ("check_pointers", Box::new(|| check_pointers(driver))),
    ];
    #[cfg(feature = "cudarc")]
    tests.extend([
        ("cudarc, fp32", Box::new(|| with_cudarc::slices::<f32>(context)) as Box<dyn Fn() + '_>),
        ("cudarc, fp16", Box::new(|| with_cudarc::slices::<f16>(context))),
        ("cudarc, bf16", Box::new(|| with_cudarc::slices::<bf16>(context))),
        ("cudarc, mismatches", Box::new(|| with_cudarc::mismatches(context))),
    ]);
    let mut failed = 0;
    for (name, test) in &tests {
        if catch_unwind(AssertUnwindSafe(test)).is_err() {
            println!("FAILED: rust cuda: {name}");
            failed += 1;
        }
    }
    println!("{} passed, {failed} failed, 0 skipped", tests.len() - failed);
    std::process::exit(i32::from(failed != 0));
}
