use alloc::string::String;
use core::fmt;

/// The library could not be opened, does not fit, or lacks a function. One line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    text: String,
}

impl LoadError {
    pub(crate) fn new(text: String) -> Self {
        LoadError { text }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for LoadError {}
