//! The little of the CUDA driver that raw device pointers need, opened at run time: the test is
//! built where there is no CUDA.
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use libloading::Library;

type Pointer = u64;

pub struct Driver {
    library: Library,
}

impl Driver {
    /// None where there is no driver or no device. Its context is the primary one, as the library's.
    pub fn open() -> Option<Driver> {
        // SAFETY: loading the driver runs nothing of ours.
        let library = unsafe { Library::new("libcuda.so.1") }.ok()?;
        let driver = Driver { library };
        let mut count: c_int = 0;
        // SAFETY: as the driver's header has them.
        unsafe {
            if driver.call::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")(0) != 0 {
                return None;
            }
            let get_count: unsafe extern "C" fn(*mut c_int) -> c_int =
                driver.call("cuDeviceGetCount");
            if get_count(&mut count) != 0 || count == 0 {
                return None;
            }
            let mut device: c_int = 0;
            let get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int = driver.call("cuDeviceGet");
            check("cuDeviceGet", get(&mut device, 0));
            let mut context: *mut c_void = null_mut();
            let retain: unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int =
                driver.call("cuDevicePrimaryCtxRetain");
            check("cuDevicePrimaryCtxRetain", retain(&mut context, device));
            let set: unsafe extern "C" fn(*mut c_void) -> c_int = driver.call("cuCtxSetCurrent");
            check("cuCtxSetCurrent", set(context));
        }
        Some(driver)
    }

    unsafe fn call<T: Copy>(&self, name: &str) -> T {
        *self.library.get::<T>(name.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Whether the device reads host memory that was not registered.
    pub fn reads_any_host_memory(&self) -> bool {
        const PAGEABLE_MEMORY_ACCESS: c_int = 88;
        let mut value: c_int = 0;
        // SAFETY: as the driver's header has it; device 0 is the first handle.
        unsafe {
            let get: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int =
                self.call("cuDeviceGetAttribute");
            check("cuDeviceGetAttribute", get(&mut value, PAGEABLE_MEMORY_ACCESS, 0));
        }
        value != 0
    }

    pub fn stream(&self) -> *mut c_void {
        let mut stream = null_mut();
        // SAFETY: as the driver's header has it. 1: it does not wait for the legacy stream.
        unsafe {
            let create: unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int =
                self.call("cuStreamCreate");
            check("cuStreamCreate", create(&mut stream, 1));
        }
        stream
    }

    pub fn wait(&self, stream: *mut c_void) {
        // SAFETY: the stream is one of stream()'s.
        unsafe {
            let wait: unsafe extern "C" fn(*mut c_void) -> c_int = self.call("cuStreamSynchronize");
            check("cuStreamSynchronize", wait(stream));
        }
    }

    /// Device memory with a copy of these elements.
    pub fn upload<T: Copy>(&self, elements: &[T]) -> Memory<'_, T> {
        let memory = self.allocate(elements.len());
        // SAFETY: both have this size.
        unsafe {
            let copy: unsafe extern "C" fn(Pointer, *const c_void, usize) -> c_int =
                self.call("cuMemcpyHtoD_v2");
            let bytes = size_of_val(elements);
            check("cuMemcpyHtoD", copy(memory.start, elements.as_ptr().cast(), bytes));
        }
        memory
    }

    pub fn allocate<T: Copy>(&self, count: usize) -> Memory<'_, T> {
        let mut start: Pointer = 0;
        // SAFETY: as the driver's header has it.
        unsafe {
            let allocate: unsafe extern "C" fn(*mut Pointer, usize) -> c_int =
                self.call("cuMemAlloc_v2");
            check("cuMemAlloc", allocate(&mut start, count * size_of::<T>()));
        }
        Memory { driver: self, start, count, elements: std::marker::PhantomData }
    }
}

fn check(name: &str, status: c_int) {
    assert_eq!(status, 0, "{name} failed");
}

pub struct Memory<'a, T> {
    driver: &'a Driver,
    start: Pointer,
    count: usize,
    elements: std::marker::PhantomData<T>,
}

impl<T: Copy + Default> Memory<'_, T> {
    pub fn address(&self) -> *mut T {
        self.start as usize as *mut T
    }

    pub fn download(&self) -> Vec<T> {
        let mut elements = vec![T::default(); self.count];
        // SAFETY: both have this size.
        unsafe {
            let copy: unsafe extern "C" fn(*mut c_void, Pointer, usize) -> c_int =
                self.driver.call("cuMemcpyDtoH_v2");
            let bytes = size_of_val(&elements[..]);
            check("cuMemcpyDtoH", copy(elements.as_mut_ptr().cast(), self.start, bytes));
        }
        elements
    }
}

impl<T> Drop for Memory<'_, T> {
    fn drop(&mut self) {
        // SAFETY: allocated, and freed once.
        unsafe {
            let free: unsafe extern "C" fn(Pointer) -> c_int = self.driver.call("cuMemFree_v2");
            free(self.start);
        }
    }
}
