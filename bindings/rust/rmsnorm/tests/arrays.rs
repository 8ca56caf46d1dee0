//! Arrays of ndarray.
#![cfg(feature = "ndarray")]

use ndarray::{s, Array, Array1, Array2, Array3, Array4};
use rmsnorm::{Backward, Context, Forward, View, ViewMut};

fn filled<D: ndarray::Dimension, S: ndarray::ShapeBuilder<Dim = D>>(shape: S) -> Array<f32, D> {
    let mut state = 1u32;
    Array::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Row by row, from plain slices.
fn expected(context: &Context, row: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; row.len()];
    Forward::new(row, &mut y).weight(weight).run(context).unwrap();
    y
}

#[test]
fn slices_and_turned_arrays_are_read_where_they_are() {
    let context = Context::cpu().unwrap();
    let whole: Array4<f32> = filled((2, 3, 4, 10));
    let weight: Array1<f32> = filled(6);
    for x in [
        whole.slice(s![.., .., .., 2..8]),
        whole.slice(s![..;-1, 0..1, ..;2, 1..7]),
        whole.slice(s![.., 1..2, .., 3..9]).permuted_axes([1, 2, 0, 3]),
    ] {
        let mut y: Array4<f32> = Array4::zeros(x.raw_dim());
        Forward::new(View::try_from(x).unwrap(), ViewMut::try_from(&mut y).unwrap())
            .weight(View::try_from(&weight).unwrap())
            .run(&context)
            .unwrap();
        for (row, result) in x.rows().into_iter().zip(y.rows()) {
            let row = row.to_vec();
            assert_eq!(result.to_vec(), expected(&context, &row, weight.as_slice().unwrap()));
        }
    }
}

#[test]
fn the_second_last_dimension_is_groups() {
    let context = Context::cpu().unwrap();
    let x: Array3<f32> = filled((5, 4, 8));
    let weight: Array2<f32> = filled((4, 8));
    let (mut y, mut rstd) = (Array3::<f32>::zeros((5, 4, 8)), Array2::<f32>::zeros((5, 4)));
    Forward::new(View::try_from(&x).unwrap(), ViewMut::try_from(&mut y).unwrap())
        .weight(View::try_from(&weight).unwrap())
        .rstd(ViewMut::try_from(&mut rstd).unwrap())
        .run(&context)
        .unwrap();
    for ((row, group), &value) in rstd.indexed_iter() {
        assert!(value > 0.0);
        let from = x.slice(s![row, group, ..]).to_vec();
        let result = expected(&context, &from, weight.row(group).to_slice().unwrap());
        assert_eq!(y.slice(s![row, group, ..]).to_vec(), result);
    }
    let (mut dx, mut dweight) = (Array3::<f32>::zeros((5, 4, 8)), Array2::<f32>::zeros((4, 8)));
    Backward::new(View::try_from(&x).unwrap(), View::try_from(&x).unwrap())
        .weight(View::try_from(&weight).unwrap())
        .rstd(View::try_from(&rstd).unwrap())
        .dx(ViewMut::try_from(&mut dx).unwrap())
        .dweight(ViewMut::try_from(&mut dweight).unwrap())
        .run(&context)
        .unwrap();
    // dy = x: dweight sums x² rstd.
    for ((group, col), &found) in dweight.indexed_iter() {
        let terms = (0..5)
            .map(|row| f64::from(x[[row, group, col]]).powi(2) * f64::from(rstd[[row, group]]));
        let exact: f64 = terms.sum();
        assert!((f64::from(found) - exact).abs() <= exact * 2f64.powi(-24) * 1.01);
    }
}

#[test]
fn what_two_strides_cannot_say_is_refused() {
    let whole: Array4<f32> = filled((4, 4, 4, 4));
    let columns_apart = whole.slice(s![.., .., .., ..;2]);
    assert!(View::try_from(columns_apart).unwrap_err().text().contains("columns"));
    let three_strides = whole.slice(s![..;2, ..3, ..;2, ..]);
    assert!(View::try_from(three_strides).unwrap_err().text().contains("one stride"));
    assert!(View::try_from(&ndarray::arr0(1f32)).unwrap_err().text().contains("no columns"));
    let nothing: Array3<f32> = Array3::zeros((0, 3, 4));
    assert_eq!(View::try_from(&nothing).unwrap().shape(), [0, 3, 4]);
}
