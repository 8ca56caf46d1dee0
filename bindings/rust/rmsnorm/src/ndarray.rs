//! Arrays of ndarray as views.

use ::ndarray::{ArrayBase, ArrayView, ArrayViewMut, Data, DataMut, Dimension};

use crate::view::lay_out;
use crate::{Element, Error, Result, View, ViewMut};

/// The last dimension is cols, the one before it, if there are three or more, groups, and all
/// others together rows. Columns must be next to each other, and rows must have one stride.
impl<'a, T: Element, D: Dimension> TryFrom<ArrayView<'a, T, D>> for View<'a, T> {
    type Error = Error;

    fn try_from(array: ArrayView<'a, T, D>) -> Result<Self> {
        let parts = lay_out(array.shape(), array.strides())?;
        // SAFETY: these are the array's elements, borrowed for 'a.
        Ok(unsafe { View::from_parts(array.as_ptr(), parts) })
    }
}

/// As an [`ArrayView`].
impl<'a, T: Element, S: Data<Elem = T>, D: Dimension> TryFrom<&'a ArrayBase<S, D>> for View<'a, T> {
    type Error = Error;

    fn try_from(array: &'a ArrayBase<S, D>) -> Result<Self> {
        array.view().try_into()
    }
}

/// As an [`ArrayView`].
impl<'a, T: Element, D: Dimension> TryFrom<ArrayViewMut<'a, T, D>> for ViewMut<'a, T> {
    type Error = Error;

    fn try_from(mut array: ArrayViewMut<'a, T, D>) -> Result<Self> {
        let parts = lay_out(array.shape(), array.strides())?;
        // SAFETY: these are the array's elements, borrowed for 'a and by nobody else.
        Ok(unsafe { ViewMut::from_parts(array.as_mut_ptr(), parts) })
    }
}

/// As an [`ArrayView`].
impl<'a, T: Element, S: DataMut<Elem = T>, D: Dimension> TryFrom<&'a mut ArrayBase<S, D>>
    for ViewMut<'a, T>
{
    type Error = Error;

    fn try_from(array: &'a mut ArrayBase<S, D>) -> Result<Self> {
        array.view_mut().try_into()
    }
}
