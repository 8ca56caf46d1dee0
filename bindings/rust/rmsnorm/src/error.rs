use std::fmt;

use rmsnorm_sys as sys;

/// What a refused or failed call is: one line that names the argument, and the library's code.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    code: i32,
    text: String,
}

/// Whose fault it is: the first digit of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's: an argument breaks a rule. Nothing has been written.
    Argument,
    /// Not supported, or not available here: no CUDA, no driver, no such device.
    Unsupported,
    /// Out of memory.
    OutOfMemory,
    /// CUDA failed.
    Cuda,
    /// A bug of the library.
    Internal,
    /// The library could not be loaded or does not fit (code 0).
    Library,
}

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(code: i32, text: impl Into<String>) -> Self {
        Error { code, text: text.into() }
    }

    pub(crate) fn shape(text: String) -> Self {
        Error::new(sys::RMSNORM_ERROR_SHAPE, text)
    }

    pub(crate) fn stride(text: String) -> Self {
        Error::new(sys::RMSNORM_ERROR_STRIDE, text)
    }

    /// `Ok` for `RMSNORM_SUCCESS`, else the error of this thread's latest failure.
    #[inline]
    pub(crate) fn check(library: &sys::Library, status: sys::rmsnorm_status_t) -> Result<()> {
        if status == sys::RMSNORM_SUCCESS {
            return Ok(());
        }
        let mut text = [0u8; 1024];
        // SAFETY: the buffer has the capacity that is told.
        let needed = unsafe { library.rmsnorm_last_error(text.as_mut_ptr().cast(), text.len()) }?;
        let written = needed.saturating_sub(1).min(text.len() - 1);
        Err(Error::new(status, String::from_utf8_lossy(&text[..written]).into_owned()))
    }

    /// One of the codes in `rmsnorm.h`, such as 1004 (`RMSNORM_ERROR_STRIDE`), which are in
    /// [`rmsnorm_sys`]; 0 where there is no library to speak.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// The line that names the argument, its value and the rule.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self.code / 1000 {
            0 => ErrorKind::Library,
            1 => ErrorKind::Argument,
            2 => ErrorKind::Unsupported,
            3 => ErrorKind::OutOfMemory,
            4 => ErrorKind::Cuda,
            _ => ErrorKind::Internal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<sys::LoadError> for Error {
    fn from(error: sys::LoadError) -> Self {
        Error::new(0, error.to_string())
    }
}
