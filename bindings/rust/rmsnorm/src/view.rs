//! Views of rows x groups x cols elements.

use std::marker::PhantomData;

use crate::{Element, Error, Result};

/// Rows, groups, cols.
pub type Shape = [usize; 3];

/// A view that is read: element (r, g, c) stands at `r * row_stride + g * group_stride + c` from
/// the first. Each (row, group) of cols elements is normalised on its own.
///
/// Strides count elements, and may be zero or negative. A slice by itself is one row: `&weight`
/// goes where a vector of cols is wanted.
#[derive(Debug)]
pub struct View<'a, T> {
    pub(crate) start: *const T,
    pub(crate) shape: Shape,
    pub(crate) strides: [isize; 2],
    memory: PhantomData<&'a [T]>,
}

/// A view that is written; as [`View`], but that no two of its elements may coincide (a call with
/// such a one is refused).
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub(crate) start: *mut T,
    pub(crate) shape: Shape,
    pub(crate) strides: [isize; 2],
    memory: PhantomData<&'a mut [T]>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

// SAFETY: as &[T] and &mut [T], which they stand for.
unsafe impl<T: Sync> Send for View<'_, T> {}
unsafe impl<T: Sync> Sync for View<'_, T> {}
unsafe impl<T: Send> Send for ViewMut<'_, T> {}
unsafe impl<T: Sync> Sync for ViewMut<'_, T> {}

// What both kinds of views are made from.
macro_rules! constructors {
    ($view:ident, $slice:ty, $pointer:ty, $as_pointer:ident) => {
        impl<'a, T: Element> $view<'a, T> {
            /// One row: a vector of cols elements, or one element per row and group.
            #[inline]
            pub fn vector(data: $slice) -> Self {
                let shape = [1, 1, data.len()];
                Self { start: data.$as_pointer(), shape, strides: [0, 0], memory: PhantomData }
            }

            /// Rows of `cols` elements, one after the other.
            ///
            /// # Errors
            /// The slice's length is no multiple of `cols`, or `cols` is 0.
            #[inline]
            pub fn rows(data: $slice, cols: usize) -> Result<Self> {
                Self::groups(data, 1, cols)
            }

            /// Rows of `groups` x `cols` elements, one after the other.
            ///
            /// # Errors
            /// The slice's length is no multiple of `groups * cols`, or that is 0.
            #[inline]
            pub fn groups(data: $slice, groups: usize, cols: usize) -> Result<Self> {
                let shape = [rows_in(data.len(), groups, cols)?, groups, cols];
                let strides = [(groups * cols) as isize, cols as isize];
                Ok(Self { start: data.$as_pointer(), shape, strides, memory: PhantomData })
            }

            /// Any view into a slice: element (0, 0, 0) stands at `data[offset]`. The stride of a
            /// dimension of size 1 is not looked at.
            ///
            /// # Errors
            /// An element would lie outside the slice.
            #[inline]
            pub fn strided(
                data: $slice,
                offset: usize,
                shape: Shape,
                strides: [isize; 2],
            ) -> Result<Self> {
                check_reach(data.len(), offset, shape, strides)?;
                let offset = offset.min(data.len());
                // SAFETY: within the slice, or at its end.
                let start = unsafe { data.$as_pointer().add(offset) };
                Ok(Self { start, shape, strides, memory: PhantomData })
            }

            /// The columns of each row cut into `groups` of equal width: heads in a packed row.
            ///
            /// # Errors
            /// There are groups already, or `groups` does not divide the columns.
            pub fn into_groups(self, groups: usize) -> Result<Self> {
                let [rows, before, cols] = self.shape;
                if before != 1 || groups == 0 || cols % groups != 0 {
                    return Err(Error::shape(format!(
                        "groups = {groups} cannot be made of a view of {rows} x {before} x {cols}"
                    )));
                }
                let width = cols / groups;
                let strides = [self.strides[0], width as isize];
                Ok(Self { shape: [rows, groups, width], strides, ..self })
            }

            /// # Safety
            /// Every element of the view is there for `'a`, to be used as the view is.
            #[cfg(feature = "ndarray")]
            pub(crate) unsafe fn from_parts(
                start: $pointer,
                (shape, strides): (Shape, [isize; 2]),
            ) -> Self {
                Self { start, shape, strides, memory: PhantomData }
            }

            /// Rows, groups, cols.
            pub fn shape(&self) -> Shape {
                self.shape
            }

            /// The distances between rows and between groups, in elements.
            pub fn strides(&self) -> [isize; 2] {
                self.strides
            }
        }

        impl<'a, T: Element> From<$slice> for $view<'a, T> {
            fn from(data: $slice) -> Self {
                Self::vector(data)
            }
        }
    };
}
constructors!(View, &'a [T], *const T, as_ptr);
constructors!(ViewMut, &'a mut [T], *mut T, as_mut_ptr);

impl<'a, T: Element> View<'a, T> {
    /// The columns before `col`, and those from it on, of every row and group.
    ///
    /// # Errors
    /// There are fewer columns.
    pub fn split_cols(self, col: usize) -> Result<(Self, Self)> {
        let (left, right) = split_shapes(self.shape, col)?;
        // SAFETY: within the first row, or at its end.
        let start = if is_empty(right) { self.start } else { unsafe { self.start.add(col) } };
        Ok((Self { shape: left, ..self }, Self { start, shape: right, ..self }))
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// The columns before `col`, and those from it on, of every row and group: parts of a packed
    /// row, each an output of its own.
    ///
    /// # Errors
    /// There are fewer columns, or rows or groups overlap.
    pub fn split_cols(self, col: usize) -> Result<(Self, Self)> {
        let (left, right) = split_shapes(self.shape, col)?;
        // Where elements coincide, the parts would be two exclusive views of one element.
        if !are_nested(self.shape, self.strides) {
            let [row, group] = self.strides;
            return Err(Error::stride(format!(
                "row_stride = {row} and group_stride = {group} make rows or groups of {} columns \
                 overlap",
                self.shape[2]
            )));
        }
        // SAFETY: within the first row, or at its end.
        let start = if is_empty(right) { self.start } else { unsafe { self.start.add(col) } };
        let left =
            Self { start: self.start, shape: left, strides: self.strides, memory: PhantomData };
        Ok((left, Self { start, shape: right, strides: self.strides, memory: PhantomData }))
    }

    /// A view for one call, after which this one can be used again.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        let Self { start, shape, strides, .. } = *self;
        ViewMut { start, shape, strides, memory: PhantomData }
    }

    /// The same elements, to be read.
    pub fn as_view(&self) -> View<'_, T> {
        let Self { start, shape, strides, .. } = *self;
        View { start, shape, strides, memory: PhantomData }
    }
}

// What converts to a vector by reference.
macro_rules! slices {
    ($($view:ident: $($reference:ty, [$($generic:tt)*], $method:ident);*);*) => {$($(
        impl<'a, T: Element $($generic)*> From<$reference> for $view<'a, T> {
            fn from(data: $reference) -> Self {
                Self::vector(data.$method())
            }
        }
    )*)*};
}
slices!(View: &'a Vec<T>, [], as_slice);
slices!(View: &'a [T; N], [, const N: usize], as_slice);
slices!(ViewMut: &'a mut Vec<T>, [], as_mut_slice);
slices!(ViewMut: &'a mut [T; N], [, const N: usize], as_mut_slice);

fn is_empty(shape: Shape) -> bool {
    shape.contains(&0)
}

#[inline]
fn rows_in(len: usize, groups: usize, cols: usize) -> Result<usize> {
    match groups.checked_mul(cols) {
        Some(width) if width > 0 && len % width == 0 => Ok(len / width),
        _ => Err(Error::shape(format!(
            "{len} elements are no rows of groups = {groups} x cols = {cols}"
        ))),
    }
}

/// Refuses a view that leaves `len` elements.
pub(crate) fn check_reach(
    len: usize,
    offset: usize,
    shape: Shape,
    strides: [isize; 2],
) -> Result<()> {
    if is_empty(shape) {
        return Ok(());
    }
    let [rows, groups, cols] = shape.map(|size| size as i128);
    let (mut low, mut high) = (offset as i128, offset as i128 + cols);
    for (count, stride) in [(rows, strides[0]), (groups, strides[1])] {
        let reach = (count - 1).saturating_mul(stride as i128);
        let end = if reach < 0 { &mut low } else { &mut high };
        *end = end.saturating_add(reach);
    }
    if low >= 0 && high <= len as i128 {
        return Ok(());
    }
    Err(Error::stride(format!(
        "a view of {rows} x {groups} x {cols} elements with row_stride = {} and group_stride = {} \
         at offset {offset} reaches from {low} to {high}, but its slice has {len} elements",
        strides[0], strides[1]
    )))
}

/// Whether each dimension steps over all that the smaller ones span, so that no two elements
/// coincide.
fn are_nested(shape: Shape, strides: [isize; 2]) -> bool {
    let mut steps = [
        (shape[0], strides[0].unsigned_abs() as u128),
        (shape[1], strides[1].unsigned_abs() as u128),
    ];
    steps.sort_by_key(|&(_, stride)| stride);
    let mut span = shape[2] as u128;
    for (count, stride) in steps {
        if count > 1 {
            if stride < span {
                return false;
            }
            span += (count as u128 - 1) * stride;
        }
    }
    true
}

fn split_shapes([rows, groups, cols]: Shape, col: usize) -> Result<(Shape, Shape)> {
    if col > cols {
        return Err(Error::shape(format!("col = {col}, but there are {cols} columns")));
    }
    Ok(([rows, groups, col], [rows, groups, cols - col]))
}

/// An array of one dimension or more as a view: the last dimension is cols, the one before it, if
/// there are three, groups, and all others together rows.
#[cfg(any(feature = "ndarray", feature = "candle"))]
pub(crate) fn lay_out(sizes: &[usize], strides: &[isize]) -> Result<(Shape, [isize; 2])> {
    let refuse = |why: &str| {
        let text = format!("an array of shape {sizes:?} and strides {strides:?} {why}");
        Err(Error::stride(text))
    };
    let Some((&cols, leading)) = sizes.split_last() else {
        return refuse("has no columns");
    };
    if cols > 1 && strides[leading.len()] != 1 && !is_empty_array(sizes) {
        return refuse("has columns that are not next to each other");
    }
    let Some((&last, outer)) = leading.split_last() else {
        return Ok(([1, 1, cols], [0, 0]));
    };
    let last_stride = strides[outer.len()];
    if outer.is_empty() {
        return Ok(([last, 1, cols], [last_stride, 0]));
    }
    let (mut rows, mut row_stride) = (1, 0);
    for (&size, &stride) in outer.iter().zip(strides).rev() {
        if size == 1 {
            continue;
        }
        if rows == 1 {
            row_stride = stride;
        } else if stride != row_stride * rows as isize && !is_empty_array(sizes) {
            return refuse("has rows of more than one stride");
        }
        rows *= size;
    }
    Ok(([rows, last, cols], [row_stride, last_stride]))
}

#[cfg(any(feature = "ndarray", feature = "candle"))]
fn is_empty_array(sizes: &[usize]) -> bool {
    sizes.contains(&0)
}
