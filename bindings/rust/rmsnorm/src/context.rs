use std::ffi::{c_char, c_void, CStr};
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use rmsnorm_sys as sys;

use crate::{Error, Result};

/// Where calls run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    Cpu,
    /// The CUDA device of this ordinal.
    Cuda(i32),
}

impl Device {
    fn codes(self) -> (sys::rmsnorm_device_t, i32) {
        match self {
            Device::Cpu => (sys::RMSNORM_DEVICE_CPU, 0),
            Device::Cuda(ordinal) => (sys::RMSNORM_DEVICE_CUDA, ordinal),
        }
    }
}

type LogFunction = dyn Fn(&str) + Send + Sync;
type ParallelFor = dyn Fn(usize, &(dyn Fn(usize) + Sync)) + Send + Sync;

/// A device and what was decided about it once. Immutable; share it between threads.
pub struct Context {
    handle: NonNull<sys::rmsnorm_context_t>,
    pub(crate) library: &'static sys::Library,
    device: Device,
    // What the handle points to; boxed once more, for a thin pointer.
    _log: Option<Box<Box<LogFunction>>>,
    _parallel_for: Option<Box<Box<ParallelFor>>>,
}

// SAFETY: the library lets any number of threads use a context at once; the closures are Send and
// Sync.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    /// The CPU, each call on its caller's thread.
    ///
    /// # Errors
    /// With the feature `dynamic-loading`, the library cannot be loaded.
    pub fn cpu() -> Result<Context> {
        Context::options().create()
    }

    /// A CUDA device.
    ///
    /// # Errors
    /// There is no such device, no driver, or the library was built without CUDA.
    pub fn cuda(ordinal: i32) -> Result<Context> {
        Context::options().device(Device::Cuda(ordinal)).create()
    }

    /// A context with options: the CPU, unless they say otherwise.
    pub fn options() -> ContextOptions {
        ContextOptions::default()
    }

    /// Where its calls run.
    pub fn device(&self) -> Device {
        self.device
    }

    /// For [`rmsnorm_sys`]; lives as long as the context.
    pub fn as_raw(&self) -> *const sys::rmsnorm_context_t {
        self.handle.as_ptr()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by rmsnorm_context_create, and no call can be running that borrows it. A
        // library without this function has made no context.
        let _ = unsafe { self.library.rmsnorm_context_destroy(self.handle.as_ptr()) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What a context is made of. Start with [`Context::options`].
#[must_use]
pub struct ContextOptions {
    device: Device,
    flags: u32,
    cpu_threads: i32,
    log: Option<Box<LogFunction>>,
    parallel_for: Option<Box<ParallelFor>>,
}

impl Default for ContextOptions {
    fn default() -> Self {
        ContextOptions {
            device: Device::Cpu,
            flags: 0,
            cpu_threads: 0,
            log: None,
            parallel_for: None,
        }
    }
}

impl fmt::Debug for ContextOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextOptions")
            .field("device", &self.device)
            .field("flags", &self.flags)
            .field("cpu_threads", &self.cpu_threads)
            .finish_non_exhaustive()
    }
}

impl ContextOptions {
    /// Where calls run.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// CUDA: loads every kernel now, so that no later call lets the driver load code.
    pub fn preload(self, on: bool) -> Self {
        self.flag(sys::RMSNORM_CONTEXT_PRELOAD, on)
    }

    /// CUDA: asks the driver about each pointer of each call, and refuses what the device cannot
    /// use.
    pub fn check_pointers(self, on: bool) -> Self {
        self.flag(sys::RMSNORM_CONTEXT_CHECK_POINTERS, on)
    }

    /// CPU: large outputs stay in the cache as far as they fit. The bits are the same.
    pub fn keep_cached(self, on: bool) -> Self {
        self.flag(sys::RMSNORM_CONTEXT_KEEP_CACHED, on)
    }

    fn flag(mut self, flag: u32, on: bool) -> Self {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
        self
    }

    /// CPU: so many threads work on a large call, the caller's among them; the others are the
    /// library's own and sleep between calls. Not beside `parallel_for` or `rayon`.
    pub fn cpu_threads(mut self, threads: usize) -> Self {
        self.cpu_threads = i32::try_from(threads).unwrap_or(i32::MAX);
        self
    }

    /// Is told each accepted operation before it runs, on the calling thread: one line of
    /// key=value pairs. A panic in it is swallowed.
    pub fn log(mut self, log: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.log = Some(Box::new(log));
        self
    }

    /// CPU: runs the parts of a large call. It is given their number and the function that runs
    /// one, and calls that once with each number below, on any threads, before it returns. A call
    /// whose parts have not all run, or that panicked in here, is an error (1013).
    pub fn parallel_for(
        mut self,
        run: impl Fn(usize, &(dyn Fn(usize) + Sync)) + Send + Sync + 'static,
    ) -> Self {
        self.parallel_for = Some(Box::new(run));
        self
    }

    /// CPU: large calls run on the threads of the rayon pool that the caller is in.
    #[cfg(feature = "rayon")]
    pub fn rayon(self) -> Self {
        use rayon::prelude::*;
        self.parallel_for(|count, task| (0..count).into_par_iter().for_each(task))
    }

    /// Makes the context.
    ///
    /// # Errors
    /// An option that does not go with the device; no such device; see [`Error::text`].
    pub fn create(self) -> Result<Context> {
        let library = sys::Library::get()?;
        let log = self.log.map(Box::new);
        let parallel_for = self.parallel_for.map(Box::new);
        let mut options = sys::rmsnorm_context_options_t::new();
        (options.device, options.ordinal) = self.device.codes();
        options.flags = self.flags;
        options.cpu_threads = self.cpu_threads;
        if let Some(closure) = &log {
            options.log = Some(call_log);
            options.log_user = address::<Box<LogFunction>>(closure); // the inner box
        }
        if let Some(closure) = &parallel_for {
            options.parallel_for = Some(call_parallel_for);
            options.parallel_for_user = address::<Box<ParallelFor>>(closure);
        }
        let mut handle = null_mut();
        // SAFETY: both live during the call; the closures as long as the context.
        let status = unsafe { library.rmsnorm_context_create(&options, &mut handle) }?;
        Error::check(library, status)?;
        let handle = NonNull::new(handle)
            .ok_or_else(|| Error::new(sys::RMSNORM_ERROR_INTERNAL, "there is no context"))?;
        Ok(Context { handle, library, device: self.device, _log: log, _parallel_for: parallel_for })
    }
}

fn address<T>(closure: &T) -> *mut c_void {
    std::ptr::from_ref(closure).cast_mut().cast()
}

unsafe extern "C" fn call_log(user: *mut c_void, line: *const c_char) {
    // SAFETY: user is the Box that the context keeps; line is valid during the call.
    let (log, line) = unsafe { (&*user.cast::<Box<LogFunction>>(), CStr::from_ptr(line)) };
    let _ = catch_unwind(AssertUnwindSafe(|| log(&line.to_string_lossy())));
}

/// The library's task, which each of its indices must reach once.
struct Tasks {
    task: unsafe extern "C" fn(*mut c_void, i64),
    argument: *mut c_void,
    taken: Vec<AtomicBool>,
    done: AtomicUsize,
}

// SAFETY: the library lets any thread run any index.
unsafe impl Sync for Tasks {}

impl Tasks {
    fn run(&self, index: usize) {
        let Some(taken) = self.taken.get(index) else {
            return;
        };
        if !taken.swap(true, Relaxed) {
            // SAFETY: an index of this call, for the first time.
            unsafe { (self.task)(self.argument, index as i64) };
            self.done.fetch_add(1, Relaxed);
        }
    }
}

unsafe extern "C" fn call_parallel_for(
    user: *mut c_void,
    count: i64,
    task: sys::rmsnorm_task_t,
    argument: *mut c_void,
) -> i32 {
    let (Some(task), Ok(count)) = (task, usize::try_from(count)) else {
        return 1;
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: user is the Box that the context keeps.
        let parallel_for = unsafe { &*user.cast::<Box<ParallelFor>>() };
        let taken = (0..count).map(|_| AtomicBool::new(false)).collect();
        let tasks = Tasks { task, argument, taken, done: AtomicUsize::new(0) };
        parallel_for(count, &|index| tasks.run(index));
        tasks.done.load(Relaxed) == count
    }));
    i32::from(!matches!(outcome, Ok(true)))
}

// ---- What there is -------------------------------------------------------------------------------

/// The loaded library's version: (0, 1, 0).
///
/// # Errors
/// With the feature `dynamic-loading`, the library cannot be loaded.
pub fn version() -> Result<(u32, u32, u32)> {
    // SAFETY: it takes nothing.
    let number = unsafe { sys::Library::get()?.rmsnorm_version() }?.unsigned_abs();
    Ok((number / 10000, number / 100 % 100, number % 100))
}

/// key=value pairs: the library's version, CUDA and its architectures (or cuda=off), instruction
/// sets.
///
/// # Errors
/// As [`version`].
pub fn build_info() -> Result<String> {
    // SAFETY: static text.
    let text = unsafe { CStr::from_ptr(sys::Library::get()?.rmsnorm_build_info()?) };
    Ok(text.to_string_lossy().into_owned())
}

/// A device, as the library sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Which one.
    pub device: Device,
    /// Its name.
    pub name: String,
    /// The code that runs there: "avx2", "sm_90".
    pub isa: String,
    /// CUDA: (major, minor); CPU: (0, 0).
    pub compute_capability: (i32, i32),
    /// Multiprocessors, or logical processors.
    pub processors: i32,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of the last-level cache; 0 where unknown.
    pub cache_bytes: i64,
    /// Whether a context can be created.
    pub supported: bool,
}

/// The CPU and every CUDA device; without CUDA in the library, without a driver or a driver that is
/// new enough, the CPU alone.
///
/// # Errors
/// As [`version`]; CUDA failed.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let library = sys::Library::get()?;
    let mut count = 0;
    // SAFETY: count lives during the call.
    let status = unsafe { library.rmsnorm_device_count(sys::RMSNORM_DEVICE_CUDA, &mut count) }?;
    match status {
        sys::RMSNORM_ERROR_BACKEND_NOT_BUILT | sys::RMSNORM_ERROR_DRIVER_TOO_OLD => count = 0,
        other => Error::check(library, other)?,
    }
    std::iter::once(Device::Cpu).chain((0..count).map(Device::Cuda)).map(describe).collect()
}

fn describe(device: Device) -> Result<DeviceInfo> {
    let library = sys::Library::get()?;
    let (kind, ordinal) = device.codes();
    let mut info = sys::rmsnorm_device_info_t::new();
    // SAFETY: it says how large it is.
    let status = unsafe { library.rmsnorm_device_info(kind, ordinal, &mut info) }?;
    Error::check(library, status)?;
    Ok(DeviceInfo {
        device,
        name: text_of(&info.name),
        isa: text_of(&info.isa),
        compute_capability: (info.compute_capability / 10, info.compute_capability % 10),
        processors: info.processors,
        memory_bytes: info.memory_bytes,
        cache_bytes: info.cache_bytes,
        supported: info.supported != 0,
    })
}

fn text_of(characters: &[c_char]) -> String {
    let bytes: Vec<u8> = characters.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
