//! The CPU.

use rmsnorm::{Context, Input, Output, View, ViewMut};

use crate::exact::Real;
use crate::{backward, forward, fused_add, Norm, Operation, Place, Result, Results};

pub struct Host<T> {
    context: Context,
    cols: usize,
    x: Vec<T>,
    residual: Vec<T>,
    weight: Vec<T>,
    dy: Vec<T>,
    dh: Vec<T>,
    h: Vec<T>,
    y: Vec<T>,
    dx: Vec<T>,
    rstd: Vec<f32>,
    dweight: Vec<f32>,
}

impl<T: Real> Host<T> {
    /// The norm's data, repeated.
    pub fn new(norm: &Norm<T>, tiles: usize) -> Result<Self> {
        let count = norm.x.len() * tiles;
        Ok(Host {
            context: Context::cpu()?,
            cols: norm.cols,
            x: norm.x.repeat(tiles),
            residual: norm.residual.repeat(tiles),
            weight: norm.weight.clone(),
            dy: norm.dy.repeat(tiles),
            dh: norm.dh.repeat(tiles),
            h: vec![T::default(); count],
            y: vec![T::default(); count],
            dx: vec![T::default(); count],
            rstd: vec![0.0; count / norm.cols],
            dweight: vec![0.0; norm.cols],
        })
    }
}

/// The first rows of an array.
fn read<T: Real>(elements: &[T], rows: usize, cols: usize) -> Result<Input<'_>> {
    Ok(View::rows(&elements[..rows * cols], cols)?.into())
}

fn write<T: Real>(elements: &mut [T], rows: usize, cols: usize) -> Result<Output<'_>> {
    Ok(ViewMut::rows(&mut elements[..rows * cols], cols)?.into())
}

// One description of each call, for running it and for its kernel's name.
macro_rules! call {
    ($self:ident, $operation:ident, $rows:ident, $method:ident) => {{
        let (context, cols) = (&$self.context, $self.cols);
        let weight = Input::from(&$self.weight);
        match $operation {
            Operation::FusedAdd => fused_add(
                [read(&$self.x, $rows, cols)?, read(&$self.residual, $rows, cols)?, weight],
                [
                    write(&mut $self.h, $rows, cols)?,
                    write(&mut $self.y, $rows, cols)?,
                    write(&mut $self.rstd, $rows, 1)?,
                ],
            )
            .$method(context)?,
            Operation::Forward => {
                forward([read(&$self.h, $rows, cols)?, weight], write(&mut $self.y, $rows, cols)?)
                    .$method(context)?
            }
            Operation::Backward => backward(
                [
                    read(&$self.dy, $rows, cols)?,
                    read(&$self.h, $rows, cols)?,
                    weight,
                    read(&$self.rstd, $rows, 1)?,
                    read(&$self.dh, $rows, cols)?,
                ],
                [write(&mut $self.dx, $rows, cols)?, Output::from(&mut $self.dweight)],
            )
            .$method(context)?,
        }
    }};
}

impl<T: Real> Place<T> for Host<T> {
    fn start(&mut self, operation: Operation, rows: usize) -> Result<()> {
        call!(self, operation, rows, run);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(()) // a call on the CPU is done when it returns
    }

    fn kernel_name(&mut self, operation: Operation, rows: usize) -> Result<String> {
        Ok(call!(self, operation, rows, kernel_name))
    }

    fn results(&self, rows: usize) -> Result<Results<T>> {
        let count = rows * self.cols;
        Ok(Results {
            h: self.h[..count].to_vec(),
            y: self.y[..count].to_vec(),
            rstd: self.rstd[..rows].to_vec(),
            dx: self.dx[..count].to_vec(),
            dweight: self.dweight.clone(),
        })
    }
}
