use rmsnorm_sys as sys;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// `f32`
    F32,
    /// [`half::f16`]
    F16,
    /// [`half::bf16`]
    Bf16,
    /// `f64`
    F64,
}

impl Dtype {
    pub(crate) const fn code(self) -> sys::rmsnorm_dtype_t {
        match self {
            Dtype::F32 => sys::RMSNORM_DTYPE_F32,
            Dtype::F16 => sys::RMSNORM_DTYPE_F16,
            Dtype::Bf16 => sys::RMSNORM_DTYPE_BF16,
            Dtype::F64 => sys::RMSNORM_DTYPE_F64,
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// `f32`, `f64`, [`half::f16`] or [`half::bf16`]. In a call each tensor has its own of the first,
/// third and fourth, or all are `f64`.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type, as a value.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($type:ty: $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}
elements!(f32: F32, half::f16: F16, half::bf16: Bf16, f64: F64);
