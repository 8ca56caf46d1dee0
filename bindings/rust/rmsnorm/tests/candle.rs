//! The operator for candle: values and gradients against f64, and a model that learns.
#![cfg(feature = "candle")]

use candle_core::{DType, Device, Module, Shape, Tensor, Var, D};
use rmsnorm::candle::{rms_norm, RmsNorm};

const EPS: f64 = 1e-5;
/// Errors of gradients smaller than this are in its ulps: their terms cancel.
const SMALL: f64 = 1.0 / 256.0;

/// The same numbers in every run, from low to high.
fn numbers(shape: impl Into<Shape>, low: f64, high: f64) -> Tensor {
    let shape = shape.into();
    let mut state = shape.elem_count() as u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 32) as f64 / 2f64.powi(32)
    };
    let elements = (0..shape.elem_count()).map(|_| low + (high - low) * next());
    Tensor::from_vec(elements.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// The definition in candle's own operators, in f64.
fn definition(x: &Tensor, weight: &Tensor, offset: f64) -> candle_core::Result<Tensor> {
    let (x, weight) = (x.to_dtype(DType::F64)?, (weight.to_dtype(DType::F64)? + offset)?);
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + EPS)?.sqrt()?)?.broadcast_mul(&weight)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// In ulps of the dtype at the larger of the value and `floor`.
fn worst(found: &Tensor, exact: &Tensor, floor: f64) -> f64 {
    let (digits, least) = match found.dtype() {
        DType::F32 => (24, -149),
        DType::F16 => (11, -24),
        DType::BF16 => (8, -133),
        _ => (53, -1074),
    };
    let errors = values(found).into_iter().zip(values(exact)).map(|(found, exact)| {
        let exponent = exact.abs().max(floor).max(1e-30).log2().floor() as i32 + 1;
        (found - exact).abs() / 2f64.powi((exponent - digits).max(least))
    });
    errors.fold(0.0, f64::max)
}

/// Values and gradients of what `of_x` makes of a variable; those of x at `floor`
/// and more.
fn judge(
    dtype: DType,
    weight_dtype: DType,
    offset: f64,
    floor: f64,
    of_x: fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<()> {
    let x = Var::from_tensor(&numbers((6, 4, 32), -2.0, 2.0).to_dtype(dtype)?)?;
    let seen = of_x(&x)?;
    let cols = seen.dims()[seen.rank() - 1];
    let weight = Var::from_tensor(&numbers(cols, 0.5, 1.5).to_dtype(weight_dtype)?)?;
    let norm = RmsNorm::new(weight.as_tensor().clone(), EPS).weight_offset(offset);
    let y = norm.forward(&seen)?;
    assert_eq!((y.dims(), y.dtype()), (seen.dims(), dtype));
    let bound = if dtype == DType::F64 { 8.0 } else { 0.502 }; // in f64 the judge rounds as often
    assert!(worst(&y, &definition(&seen, &weight, offset)?, 0.0) <= bound);

    let dy = numbers(y.dims(), -2.0, 2.0).to_dtype(dtype)?;
    let gradients = (y * &dy)?.sum_all()?.backward()?;
    let (x64, weight64) = (
        Var::from_tensor(&x.to_dtype(DType::F64)?)?,
        Var::from_tensor(&weight.to_dtype(DType::F64)?)?,
    );
    let exact = (definition(&of_x(&x64)?, &weight64, offset)? * dy.to_dtype(DType::F64)?)?;
    let exact = exact.sum_all()?.backward()?;
    // In f64 the judge itself rounds as often, and terms cancel.
    let (bound, floor) = if dtype == DType::F64 { (8.0, 4.0) } else { (0.51, floor) };
    let dx = gradients.get(&x).unwrap();
    let error = worst(dx, exact.get(&x64).unwrap(), floor);
    assert!(error <= bound, "dx of {dtype:?}: {error} ulp");
    let dweight = gradients.get(&weight).unwrap();
    assert_eq!(dweight.dtype(), weight_dtype);
    let bound = if weight_dtype == DType::F64 { 8.0 } else { 0.51 };
    let error = worst(
        dweight,
        exact.get(&weight64).unwrap(),
        if weight_dtype == DType::F64 { 4.0 } else { SMALL },
    );
    assert!(error <= bound, "dweight of {weight_dtype:?}: {error} ulp");
    Ok(())
}

#[test]
fn values_and_gradients() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        for offset in [0.0, 1.0] {
            judge(dtype, dtype, offset, SMALL, |x| Ok(x.clone())).unwrap();
        }
    }
    judge(DType::BF16, DType::F32, 0.0, SMALL, |x| Ok(x.clone())).unwrap();
}

/// Narrowed, transposed, expanded: read where they are, or copied.
#[test]
fn tensors_with_strides() {
    judge(DType::F32, DType::F32, 0.0, SMALL, |x| x.narrow(2, 3, 20)).unwrap();
    judge(DType::F32, DType::F32, 0.0, SMALL, |x| x.narrow(0, 1, 3)?.transpose(0, 1)).unwrap();
    judge(DType::F32, DType::F32, 0.0, SMALL, |x| x.transpose(1, 2)).unwrap();
    // candle itself sums the five rows of dx, in f32.
    judge(DType::F32, DType::F32, 0.0, 64.0, |x| x.narrow(1, 0, 1)?.broadcast_as((6, 5, 32)))
        .unwrap();
}

#[test]
fn a_model_learns() -> candle_core::Result<()> {
    let device = Device::Cpu;
    let x = numbers((64, 16), -2.0, 2.0).to_dtype(DType::F32)?;
    let goal = rms_norm(&x, &numbers(16, 0.5, 2.0).to_dtype(DType::F32)?, EPS)?;
    let weight = Var::ones(16, DType::F32, &device)?;
    let loss = || (rms_norm(&x, &weight, EPS)? - &goal)?.sqr()?.mean_all();
    let before = loss()?.to_scalar::<f32>()?;
    for _ in 0..100 {
        let gradients = loss()?.backward()?;
        let step = (gradients.get(&weight).unwrap() * 4.0)?;
        weight.set(&(weight.as_tensor() - step)?)?;
    }
    assert!(loss()?.to_scalar::<f32>()? < before * 1e-6);
    Ok(())
}

#[test]
fn what_does_not_go_together_is_refused() -> candle_core::Result<()> {
    let device = Device::Cpu;
    let x = Tensor::ones((2, 8), DType::F32, &device)?;
    let text = |weight: &Tensor| rms_norm(&x, weight, EPS).unwrap_err().to_string();
    assert!(text(&Tensor::ones(4, DType::F32, &device)?).contains("weight"));
    assert!(text(&Tensor::ones(8, DType::F64, &device)?).contains("weight.dtype"));
    assert!(text(&Tensor::ones(8, DType::U32, &device)?).contains("U32"));
    Ok(())
}
