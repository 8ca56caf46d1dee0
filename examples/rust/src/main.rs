//! Runs librmsnorm on real hidden states: `rmsnorm-example FOLDER`, where FOLDER (tests/data) holds
//! what one norm of a trained decoder sees, in fp32, fp16 and bf16. On the CPU and, with the feature
//! `cuda`, on the first CUDA device, it calls
//!
//! ```text
//! fused add   h = x + residual, y = RMSNorm(h), and rstd for later
//! forward     y = RMSNorm(h)
//! backward    dx and dweight from dy, h, rstd, and dh, the gradient that h gets past the norm
//! ```
//!
//! judges each result by formulas written out in exact.rs, and times the same calls on the same
//! data repeated until no cache holds it: examples/c in Rust.

#[cfg(feature = "cuda")]
mod cuda;
mod exact;
mod host;
mod npy;

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use exact::{Gradient, Real};
use half::{bf16, f16};
use rmsnorm::{Backward, Device, Dtype, Forward, Input, Output};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const EPS: f64 = 1e-6; // the model's
const REPEATS: usize = 7;

/// One norm of the model: rows x cols, and a vector of cols.
struct Norm<T> {
    cols: usize,
    x: Vec<T>,
    residual: Vec<T>,
    weight: Vec<T>,
    dy: Vec<T>,
    dh: Vec<T>,
}

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    FusedAdd,
    Forward,
    Backward,
}

impl Operation {
    const ALL: [Operation; 3] = [Operation::FusedAdd, Operation::Forward, Operation::Backward];

    fn name(self) -> &'static str {
        match self {
            Operation::FusedAdd => "fused add",
            Operation::Forward => "forward",
            Operation::Backward => "backward",
        }
    }

    /// Tensors of rows x cols that it cannot help reading and writing.
    fn tensors_moved(self) -> usize {
        if self == Operation::Forward {
            2
        } else {
            4
        }
    }
}

/// The results of one call on the data as it is, in host memory.
struct Results<T> {
    h: Vec<T>,
    y: Vec<T>,
    rstd: Vec<f32>,
    dx: Vec<T>,
    dweight: Vec<f32>,
}

/// Where calls run, with everything they need in memory there: the norm's data, repeated.
trait Place<T> {
    /// Puts it in, for the first rows.
    fn start(&mut self, operation: Operation, rows: usize) -> Result<()>;
    /// For all that was started.
    fn wait(&self) -> Result<()>;
    fn kernel_name(&mut self, operation: Operation, rows: usize) -> Result<String>;
    fn results(&self, rows: usize) -> Result<Results<T>>;
}

// ---- The calls, on either device -----------------------------------------------------------------

fn fused_add<'a>(
    [x, residual, weight]: [Input<'a>; 3],
    [h, y, rstd]: [Output<'a>; 3],
) -> Forward<'a> {
    Forward::new(x, y).residual(residual).residual_out(h).weight(weight).rstd(rstd).eps(EPS)
}

fn forward<'a>([h, weight]: [Input<'a>; 2], y: Output<'a>) -> Forward<'a> {
    Forward::new(h, y).weight(weight).eps(EPS)
}

fn backward<'a>(
    [dy, h, weight, rstd, dh]: [Input<'a>; 5],
    [dx, dweight]: [Output<'a>; 2],
) -> Backward<'a> {
    let call = Backward::new(dy, h).weight(weight).rstd(rstd).dresidual_out(dh);
    call.dx(dx).dweight(dweight).eps(EPS)
}

// ---- Judging -------------------------------------------------------------------------------------

/// Keeps the largest error, in ulps of the larger of result and terms: a sum that cancels keeps the
/// rounding errors of its terms. More than `bound` ulps of the result plus `share` of the terms,
/// the library's promise, is a failure.
struct Judge {
    worst: f64,
    bound: f64,
    share: f64,
}

impl Judge {
    fn compare(&mut self, what: &str, found: f64, exact: Gradient, dtype: Dtype) -> Result<()> {
        let error = (found - exact.value).abs();
        let allowed = self.bound * exact::ulp(exact.value, dtype) + self.share * exact.terms;
        if error.is_nan() || error > allowed {
            return Err(format!(
                "{what} is {found}, but exactly it is {}: the error is larger than promised",
                exact.value
            )
            .into());
        }
        let unit = exact::ulp(exact.value.abs().max(exact.terms), dtype);
        self.worst = self.worst.max(error / unit);
        Ok(())
    }
}

fn judge_forward<T: Real>(
    norm: &Norm<T>,
    operation: Operation,
    results: &Results<T>,
    mut judge: Judge,
) -> Result<f64> {
    let weight = exact::wide(&norm.weight);
    for (row, h) in results.h.chunks(norm.cols).enumerate() {
        let exact_y = exact::forward(&exact::wide(h), &weight, EPS);
        for (col, value) in exact_y.into_iter().enumerate() {
            let i = row * norm.cols + col;
            if operation == Operation::FusedAdd {
                // Rounded once, whatever the device.
                let sum = norm.x[i].wide() + norm.residual[i].wide();
                let mut rounding = Judge { worst: judge.worst, bound: 0.5, share: 0.0 };
                let exact = Gradient { value: sum, terms: 0.0 };
                rounding.compare("residual_out", h[col].wide(), exact, T::DTYPE)?;
                judge.worst = rounding.worst;
            }
            judge.compare("y", results.y[i].wide(), Gradient { value, terms: 0.0 }, T::DTYPE)?;
        }
    }
    Ok(judge.worst)
}

fn judge_backward<T: Real>(
    norm: &Norm<T>,
    results: &Results<T>,
    mut of_dx: Judge,
    mut of_dweight: Judge,
) -> Result<f64> {
    let cols = norm.cols;
    let weight = exact::wide(&norm.weight);
    let mut dweight = vec![Gradient::default(); cols];
    for (row, &rstd) in results.rstd.iter().enumerate() {
        let part = row * cols..(row + 1) * cols;
        let [dy, h, dh] =
            [&norm.dy, &results.h, &norm.dh].map(|all| exact::wide(&all[part.clone()]));
        let rstd = f64::from(rstd);
        let dx = exact::dx(&dy, &h, &weight, rstd, &dh);
        for (found, exact) in results.dx[part].iter().zip(dx) {
            of_dx.compare("dx", found.wide(), exact, T::DTYPE)?;
        }
        for ((sum, dy), h) in dweight.iter_mut().zip(dy).zip(h) {
            sum.value += dy * h * rstd;
            sum.terms += (dy * h * rstd).abs();
        }
    }
    for (&found, exact) in results.dweight.iter().zip(dweight) {
        of_dweight.compare("dweight", f64::from(found), exact, Dtype::F32)?;
    }
    Ok(of_dx.worst.max(of_dweight.worst))
}

fn judge<T: Real>(
    device: Device,
    norm: &Norm<T>,
    operation: Operation,
    results: &Results<T>,
) -> Result<f64> {
    let on_cpu = device == Device::Cpu;
    let bound = match T::DTYPE {
        _ if on_cpu => 0.501,
        Dtype::F32 => 1.0,
        _ => 0.51,
    };
    let of = |bound, share: i32| Judge { worst: 0.0, bound, share: 2f64.powi(share) };
    if operation != Operation::Backward {
        return judge_forward(norm, operation, results, Judge { worst: 0.0, bound, share: 0.0 });
    }
    let (of_dx, of_dweight) =
        if on_cpu { (of(bound, -40), of(bound, -40)) } else { (of(bound, -19), of(1.0, -18)) };
    judge_backward(norm, results, of_dx, of_dweight)
}

// ---- Running -------------------------------------------------------------------------------------

/// Seconds of one call: a median, after a warm-up.
fn time<T>(
    place: &mut dyn Place<T>,
    operation: Operation,
    rows: usize,
    batch: usize,
) -> Result<f64> {
    place.start(operation, rows)?;
    place.wait()?;
    let mut seconds = Vec::new();
    for _ in 0..REPEATS {
        let start = Instant::now();
        for _ in 0..batch {
            place.start(operation, rows)?;
        }
        place.wait()?;
        seconds.push(start.elapsed().as_secs_f64() / batch as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[REPEATS / 2])
}

fn run_norm<T: Real>(
    device: Device,
    norm: &Norm<T>,
    tiles: usize,
    place: &mut dyn Place<T>,
) -> Result<()> {
    let (device_name, batch) = if device == Device::Cpu { ("cpu", 1) } else { ("cuda", 16) };
    let rows = norm.x.len() / norm.cols;
    for operation in Operation::ALL {
        let name = operation.name();
        place.start(operation, rows)?;
        place.wait()?;
        let error = judge(device, norm, operation, &place.results(rows)?)
            .map_err(|error| format!("{device_name}: {}: {name}: {error}", T::NAME))?;
        let kernel = place.kernel_name(operation, rows * tiles)?;
        let seconds = time(place, operation, rows * tiles, batch)?;
        let bytes = operation.tensors_moved() * norm.x.len() * tiles * size_of::<T>();
        let rate = 1e-9 * bytes as f64 / seconds;
        println!("{device_name:<6}  {:<5}  {name:<9}  {error:9.4}  {rate:8.1}  {kernel}", T::NAME);
    }
    Ok(())
}

/// How often to repeat the data so that no cache of such a device holds it.
fn tiles_for<T>(norm: &Norm<T>, elements: usize) -> usize {
    elements / norm.x.len() + 1
}

fn run_dtype<T: Real>(device: Device, folder: &Path, name: &str) -> Result<()> {
    let norm = npy::read_norm::<T>(folder, name)?;
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let tiles = tiles_for(&norm, 64 << 20);
            run_norm(device, &norm, tiles, &mut cuda::Cuda::new(&norm, tiles)?)
        }
        _ => {
            let tiles = tiles_for(&norm, 8 << 20);
            run_norm(device, &norm, tiles, &mut host::Host::new(&norm, tiles)?)
        }
    }
}

fn run_device(device: Device, folder: &Path) -> Result<()> {
    run_dtype::<f32>(device, folder, "layer2_mlp")?;
    run_dtype::<f16>(device, folder, "layer2_mlp_f16")?;
    run_dtype::<bf16>(device, folder, "layer2_mlp_bf16")
}

/// Whether there is a device to run on; if not, a line says why.
fn has_cuda() -> Result<bool> {
    let why_not = if rmsnorm::build_info()?.contains("cuda=off") {
        "librmsnorm was built without CUDA"
    } else if rmsnorm::devices()?.len() == 1 {
        "no device"
    } else if cfg!(not(feature = "cuda")) {
        "this program was built without the feature cuda"
    } else {
        return Ok(true);
    };
    println!("cuda    {why_not}");
    Ok(false)
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return Err(
            "usage: rmsnorm-example FOLDER, where FOLDER holds the .npy files (tests/data)".into(),
        );
    };
    let folder = Path::new(&folder);
    println!("librmsnorm {}", rmsnorm::build_info()?);
    println!("error: the largest, in ulps against formulas in f64 (exact.rs); for gradients, in");
    println!("ulps of the terms that they sum. GB/s: of what a call must read and write.\n");
    println!("device  dtype  operation  error/ulp      GB/s  kernel");
    run_device(Device::Cpu, folder)?;
    if has_cuda()? {
        run_device(Device::Cuda(0), folder)?;
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("rmsnorm-example: {error}");
        std::process::exit(1);
    }
}
