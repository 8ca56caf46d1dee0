//! The functions of a library that is opened at run time: the file that the environment variable
//! RMSNORM_LIBRARY names (that one or none), or the system's librmsnorm.so of this ABI.

use alloc::format;
use alloc::string::String;
use std::ffi::OsString;

use crate::LoadError;

/// Opens the library, and tells under which name.
pub(crate) fn open(abi: i32) -> Result<(libloading::Library, String), LoadError> {
    let (why, file) = match std::env::var_os("RMSNORM_LIBRARY") {
        Some(named) if !named.is_empty() => ("RMSNORM_LIBRARY", named),
        _ => ("the system's", OsString::from(format!("librmsnorm.so.{abi}"))),
    };
    let name = file.to_string_lossy().into_owned();
    // SAFETY: librmsnorm runs nothing when it is loaded.
    match unsafe { libloading::Library::new(&file) } {
        Ok(library) => Ok((library, name)),
        Err(error) => {
            let said = said_by(&error);
            let place = if said.contains(&name) { String::new() } else { format!("{name}: ") };
            Err(LoadError::new(format!("librmsnorm was not found; tried {why}: {place}{said}")))
        }
    }
}

/// What the dynamic linker said, which libloading keeps as the source of its own error.
fn said_by(error: &libloading::Error) -> String {
    let text = match error {
        libloading::Error::DlOpen { desc } => format!("{desc:?}"),
        other => format!("{other}"),
    };
    text.trim_matches('"').replace('\n', " ")
}

macro_rules! functions {
    ($(pub fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// The library, linked or loaded: the same methods either way, one for each function.
        #[derive(Debug)]
        pub struct Library {
            file: alloc::string::String,
            $($name: Option<unsafe extern "C" fn($($type),*) $(-> $result)?>,)*
        }

        impl Library {
            /// The library, opened by the first call that finds it; an error if there is none, or
            /// if it is of another ABI than these bindings.
            pub fn get() -> Result<&'static Library, crate::LoadError> {
                static LOADED: std::sync::OnceLock<Library> = std::sync::OnceLock::new();
                if let Some(loaded) = LOADED.get() {
                    return Ok(loaded);
                }
                let loaded = Library::load()?;
                Ok(LOADED.get_or_init(|| loaded))
            }

            fn load() -> Result<Library, crate::LoadError> {
                let (library, file) = crate::loaded::open(RMSNORM_ABI_VERSION)?;
                $(
                    // SAFETY: the function has this type in every library of this ABI, which is
                    // asked below, before any other call.
                    let $name = unsafe {
                        library.get(concat!(stringify!($name), "\0").as_bytes()).ok().map(|f| *f)
                    };
                )*
                core::mem::forget(library); // its functions live as long as the process
                let loaded = Library { file, $($name),* };
                let file = &loaded.file;
                // SAFETY: it takes nothing and changes nothing.
                let abi = unsafe { loaded.rmsnorm_abi_version() }.map_err(|_| {
                    crate::LoadError::new(alloc::format!(
                        "{file} is not librmsnorm: it has no rmsnorm_abi_version"
                    ))
                })?;
                if abi == RMSNORM_ABI_VERSION {
                    return Ok(loaded);
                }
                Err(crate::LoadError::new(alloc::format!(
                    "{file} has ABI {abi}, but this crate is for ABI {RMSNORM_ABI_VERSION}"
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
                    match self.$name {
                        Some(function) => Ok(function($($argument),*)),
                        None => Err(crate::LoadError::new(alloc::format!(
                            "{} has no {}: it is older than this crate",
                            self.file, stringify!($name)
                        ))),
                    }
                }
            )*
        }
    };
    (@result) => { () };
    (@result $result:ty) => { $result };
}
