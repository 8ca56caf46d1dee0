//! The functions of a library that is linked.

macro_rules! functions {
    ($(pub fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        extern "C" {
            $(pub fn $name($($argument: $type),*) $(-> $result)?;)*
        }

        /// The library, linked or loaded: the same methods either way, one for each function.
        #[derive(Debug)]
        pub struct Library(());

        impl Library {
            /// The library; an error if it is of another ABI than these bindings.
            pub fn get() -> Result<&'static Library, crate::LoadError> {
                // SAFETY: it takes nothing and changes nothing.
                let abi = unsafe { rmsnorm_abi_version() };
                if abi == RMSNORM_ABI_VERSION {
                    return Ok(&Library(()));
                }
                Err(crate::LoadError::new(alloc::format!(
                    "the linked librmsnorm has ABI {abi}, but this crate is for ABI \
                     {RMSNORM_ABI_VERSION}"
                )))
            }

            $(
                /// The function of this name in `rmsnorm.h`; an error if the library lacks it.
                ///
                /// # Safety
                /// As the header has it.
                #[inline]
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $name(
                    &self, $($argument: $type),*
                ) -> Result<functions!(@result $($result)?), crate::LoadError> {
                    Ok($name($($argument),*))
                }
            )*
        }
    };
    (@result) => { () };
    (@result $result:ty) => { $result };
}
