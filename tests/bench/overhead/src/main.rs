//! The time of a call from Rust, through rmsnorm-sys and through rmsnorm: overhead.c's twin.
use std::ptr::null_mut;
use std::time::Instant;

use rmsnorm::rmsnorm_sys as sys;
use rmsnorm::{Context, Forward, View, ViewMut};

const COLS: usize = 1024;
const CALLS: u32 = 500;
const ROUNDS: usize = 4000;

fn report(name: &str, mut call: impl FnMut()) {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    println!("{name:<22} {best:7.1} ns");
}

fn main() -> rmsnorm::Result<()> {
    let context = Context::cpu()?;
    let x: Vec<f32> = (0..COLS).map(|i| (i % 7) as f32 - 3.0).collect();
    let (weight, mut y) = (vec![1f32; COLS], vec![0f32; COLS]);

    let library = sys::Library::get()?;
    report("Rust, rmsnorm-sys", || {
        let mut p = sys::rmsnorm_forward_params_t::new();
        (p.rows, p.cols, p.eps) = (1, COLS as i64, 1e-6);
        (p.x.data, p.x.row_stride) = (x.as_ptr().cast(), COLS as i64);
        (p.weight.data, p.y.data) = (weight.as_ptr().cast(), y.as_mut_ptr().cast());
        (p.x.dtype, p.weight.dtype) = (sys::RMSNORM_DTYPE_F32, sys::RMSNORM_DTYPE_F32);
        (p.y.dtype, p.y.row_stride) = (sys::RMSNORM_DTYPE_F32, COLS as i64);
        // SAFETY: the vectors have this many elements.
        let status =
            unsafe { library.rmsnorm_forward(context.as_raw(), &p, null_mut(), 0, null_mut()) };
        assert_eq!(status, Ok(0));
    });
    report("Rust, rmsnorm", || {
        let (from, to) = (View::rows(&x, COLS), ViewMut::rows(&mut y, COLS));
        let result =
            from.and_then(|x| Forward::new(x, to?).weight(&weight).eps(1e-6).run(&context));
        assert_eq!(result, Ok(()));
    });
    Ok(())
}
