//! Reads .npy files of version 1.0, in C order, as tests/data has them.

use std::path::Path;

use crate::exact::Real;
use crate::{Norm, Result};

/// The elements, and the last dimension's size.
fn read<T: Real>(path: &Path) -> Result<(Vec<T>, usize)> {
    let said = |why: &str| format!("{}: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|error| said(&error.to_string()))?;
    let header = match bytes.get(..10) {
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, 0, low, high]) => {
            10 + usize::from(u16::from_le_bytes([*low, *high]))
        }
        _ => return Err(said("not a .npy file of version 1.0").into()),
    };
    let text = bytes.get(10..header).ok_or_else(|| said("its header is cut short"))?;
    let text = String::from_utf8_lossy(text);
    if !text.contains("'fortran_order': False") {
        return Err(said("not in C order").into());
    }
    if !text.contains(&format!("'descr': '{}'", T::NPY)) {
        return Err(said(&format!("not of the type {}", T::NPY)).into());
    }
    let shape = text.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
    let sizes: Vec<usize> = shape
        .map(|(sizes, _)| sizes.split(',').flat_map(|size| size.trim().parse()).collect())
        .unwrap_or_default();
    let cols = *sizes.last().ok_or_else(|| said("it has no shape"))?;
    let elements: Vec<T> = bytes[header..].chunks_exact(size_of::<T>()).map(T::from_le).collect();
    if elements.len() != sizes.iter().product::<usize>() || cols == 0 {
        return Err(said("its size does not match its shape").into());
    }
    Ok((elements, cols))
}

pub fn read_norm<T: Real>(folder: &Path, name: &str) -> Result<Norm<T>> {
    let array = |array: &str| read::<T>(&folder.join(format!("{name}.{array}.npy")));
    let (x, cols) = array("x")?;
    let like_x = |name: &str| match array(name)? {
        (elements, width) if elements.len() == x.len() && width == cols => Ok(elements),
        _ => Err(format!("{name}'s shape does not go with x's").into()) as Result<Vec<T>>,
    };
    let (residual, dy, dh) = (like_x("residual")?, like_x("dy")?, like_x("dh")?);
    let (weight, width) = array("weight")?;
    if weight.len() != cols || width != cols {
        return Err("weight's shape does not go with x's".into());
    }
    Ok(Norm { cols, x, residual, weight, dy, dh })
}
