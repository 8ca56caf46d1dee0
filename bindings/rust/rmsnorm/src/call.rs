//! What the operations share: fitting tensors to the shape, and running.

use std::ffi::{c_char, c_void, CStr};
use std::marker::PhantomData;
use std::ptr::null_mut;

use rmsnorm_sys as sys;

use crate::tensor::{Input, Keep, Launch, Output, Place};
use crate::view::Shape;
use crate::{Context, Device, Error, Result};

/// One operation of the C interface.
pub(crate) trait Operation {
    type Params;
    /// The tensor whose shape is the call's.
    const MAIN: &'static str;
    /// Whether calls on the CPU want a workspace, as a rule.
    const WANTS_WORKSPACE: bool;

    fn set_shape(params: &mut Self::Params, sizes: [i64; 3]);
    /// # Safety
    /// These three: as the header has it.
    unsafe fn run(
        context: &Context,
        params: &Self::Params,
        launch: &Launch,
    ) -> std::result::Result<i32, sys::LoadError>;
    unsafe fn workspace_size(
        context: &Context,
        params: &Self::Params,
        size: &mut usize,
    ) -> std::result::Result<i32, sys::LoadError>;
    unsafe fn kernel_name(
        context: &Context,
        params: &Self::Params,
        name: &mut [c_char],
    ) -> std::result::Result<i32, sys::LoadError>;
}

/// An operation by the names of its params and of its functions: the call, its size and name
/// queries.
macro_rules! operation {
    (
        $operation:ident,
        $params:ident,
        main = $main:literal,
        wants_workspace = $wants_workspace:literal,
        [$run:ident, $workspace_size:ident, $kernel_name:ident]
    ) => {
        pub(crate) struct $operation;

        impl crate::call::Operation for $operation {
            type Params = rmsnorm_sys::$params;
            const MAIN: &'static str = $main;
            const WANTS_WORKSPACE: bool = $wants_workspace;

            fn set_shape(params: &mut Self::Params, sizes: [i64; 3]) {
                [params.rows, params.groups, params.cols] = sizes;
            }
            unsafe fn run(
                context: &crate::Context,
                params: &Self::Params,
                launch: &crate::Launch,
            ) -> Result<i32, rmsnorm_sys::LoadError> {
                let (workspace, size, stream) = crate::call::parts(launch);
                // SAFETY: the caller's promise.
                unsafe { context.library.$run(context.as_raw(), params, workspace, size, stream) }
            }
            unsafe fn workspace_size(
                context: &crate::Context,
                params: &Self::Params,
                size: &mut usize,
            ) -> Result<i32, rmsnorm_sys::LoadError> {
                // SAFETY: the caller's promise.
                unsafe { context.library.$workspace_size(context.as_raw(), params, size) }
            }
            unsafe fn kernel_name(
                context: &crate::Context,
                params: &Self::Params,
                name: &mut [std::ffi::c_char],
            ) -> Result<i32, rmsnorm_sys::LoadError> {
                let (text, capacity) = (name.as_mut_ptr(), name.len());
                // SAFETY: the caller's promise.
                unsafe { context.library.$kernel_name(context.as_raw(), params, text, capacity) }
            }
        }
    };
}
pub(crate) use operation;

/// How a tensor relates to the shape.
#[derive(Clone, Copy)]
pub(crate) enum Extent {
    Elements,
    /// The same for every row.
    Vector,
    /// One element per row and group.
    Rows,
}

/// A call that is being described. The first thing that does not fit is what running it returns.
pub(crate) struct Call<'a, O: Operation> {
    pub params: O::Params,
    shape: Shape,
    place: Place,
    problem: Option<Error>,
    keep: Vec<Box<dyn Keep + 'a>>,
    memory: PhantomData<&'a mut ()>,
}

impl<'a, O: Operation> Call<'a, O> {
    /// `shape` and `place` are those of O::MAIN.
    pub fn new(mut params: O::Params, shape: Shape, place: Place) -> Self {
        let [rows, groups, cols] = shape.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        // To the library 0 groups are 1; here they are no elements.
        O::set_shape(&mut params, if groups == 0 { [0, 1, cols] } else { [rows, groups, cols] });
        Call { params, shape, place, problem: None, keep: Vec::new(), memory: PhantomData }
    }

    /// A tensor as the params have it; absent where it does not fit.
    pub fn input(&mut self, name: &str, extent: Extent, input: Input<'a>) -> sys::rmsnorm_input_t {
        let Input { tensor, shape, place, keep, .. } = input;
        self.keep.extend(keep);
        match self.fit(name, extent, shape, [tensor.row_stride, tensor.group_stride], place) {
            Some([row_stride, group_stride]) => {
                sys::rmsnorm_input_t { row_stride, group_stride, ..tensor }
            }
            None => sys::rmsnorm_input_t::new(),
        }
    }

    /// The same of an output.
    pub fn output(
        &mut self,
        name: &str,
        extent: Extent,
        output: Output<'a>,
    ) -> sys::rmsnorm_tensor_t {
        let Output { tensor, shape, place, keep, .. } = output;
        self.keep.extend(keep);
        let fitted = self.fit(name, extent, shape, [tensor.row_stride, tensor.group_stride], place);
        if let (Extent::Vector, [rows, groups, _], Some([_, 0])) = (extent, shape, fitted) {
            if rows > 1 || groups > 1 {
                // To the library this would be one vector for all groups.
                self.refuse(Error::stride(format!("{name}.group_stride = 0 makes groups overlap")));
            }
        }
        match fitted {
            Some([row_stride, group_stride]) => {
                sys::rmsnorm_tensor_t { row_stride, group_stride, ..tensor }
            }
            None => sys::rmsnorm_tensor_t::new(),
        }
    }

    fn fit(
        &mut self,
        name: &str,
        extent: Extent,
        shape: Shape,
        strides: [i64; 2],
        place: Place,
    ) -> Option<[i64; 2]> {
        let fitted = if place == self.place {
            fit(name, extent, shape, strides, (O::MAIN, self.shape))
        } else {
            Err(Error::new(
                sys::RMSNORM_ERROR_DEVICE,
                format!("{name} is in other memory, or for another stream, than {}", O::MAIN),
            ))
        };
        fitted.map_err(|error| self.refuse(error)).ok()
    }

    fn refuse(&mut self, error: Error) {
        self.problem.get_or_insert(error);
    }

    /// Runs on the CPU.
    pub fn run(&mut self, context: &Context) -> Result<()> {
        self.check(context, Device::Cpu)?;
        let mut launch = Launch::default();
        let mut memory = Vec::new();
        if O::WANTS_WORKSPACE {
            self.add_workspace(context, &mut launch, &mut memory)?;
        }
        // SAFETY: the views hold their memory for 'a, and no output shares any (Rust's own rule)
        // but where an operation works in place; the workspace is as large as was asked for.
        let status = unsafe { O::run(context, &self.params, &launch) }?;
        if status != sys::RMSNORM_ERROR_WORKSPACE || O::WANTS_WORKSPACE {
            return Error::check(context.library, status);
        }
        self.add_workspace(context, &mut launch, &mut memory)?;
        // SAFETY: as above. The refused call has written nothing.
        let status = unsafe { O::run(context, &self.params, &launch) }?;
        Error::check(context.library, status)
    }

    fn add_workspace(
        &self,
        context: &Context,
        launch: &mut Launch,
        memory: &mut Vec<u64>,
    ) -> Result<()> {
        let size = self.query_size(context)?;
        if size == 0 {
            return Ok(());
        }
        let words = size.div_ceil(size_of::<u64>());
        memory.try_reserve_exact(words).map_err(|_| {
            let text = format!("there are no {size} bytes for a workspace");
            Error::new(sys::RMSNORM_ERROR_OUT_OF_MEMORY, text)
        })?;
        launch.workspace = memory.as_mut_ptr().cast();
        launch.workspace_size = size;
        Ok(())
    }

    /// # Safety
    /// As the header has it.
    pub unsafe fn launch(&mut self, context: &Context, launch: &Launch) -> Result<()> {
        if self.place == Place::Host {
            return Err(host_memory::<O>());
        }
        self.check_problem()?;
        if context.device() == Device::Cpu {
            return Err(device_memory::<O>());
        }
        // SAFETY: the caller's promise.
        let status = unsafe { O::run(context, &self.params, launch) }?;
        Error::check(context.library, status)
    }

    pub fn workspace_size(&self, context: &Context) -> Result<usize> {
        self.check_problem()?;
        self.query_size(context)
    }

    fn query_size(&self, context: &Context) -> Result<usize> {
        let mut size = 0;
        // SAFETY: a query looks at no memory of the tensors.
        let status = unsafe { O::workspace_size(context, &self.params, &mut size) }?;
        Error::check(context.library, status)?;
        Ok(size)
    }

    pub fn kernel_name(&self, context: &Context) -> Result<String> {
        self.check_problem()?;
        let mut name = [0 as c_char; sys::RMSNORM_KERNEL_NAME_SIZE as usize];
        // SAFETY: a query looks at no memory of the tensors; the name has room.
        let status = unsafe { O::kernel_name(context, &self.params, &mut name) }?;
        Error::check(context.library, status)?;
        // SAFETY: a success has written a C string.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    fn check_problem(&self) -> Result<()> {
        self.problem.clone().map_or(Ok(()), Err)
    }

    fn check(&self, context: &Context, device: Device) -> Result<()> {
        if self.place != Place::Host {
            return Err(device_memory::<O>());
        }
        self.check_problem()?;
        if context.device() != device {
            return Err(host_memory::<O>());
        }
        Ok(())
    }

    #[cfg(feature = "cudarc")]
    pub fn place(&self) -> Place {
        self.place
    }
}

fn host_memory<O: Operation>() -> Error {
    Error::new(
        sys::RMSNORM_ERROR_DEVICE,
        format!("{} is in host memory: it wants a context of the CPU, and run()", O::MAIN),
    )
}

fn device_memory<O: Operation>() -> Error {
    Error::new(
        sys::RMSNORM_ERROR_DEVICE,
        format!("{} is in a device's memory: it wants a context of it, and a stream", O::MAIN),
    )
}

/// The strides of a tensor as the C interface wants them, if its shape goes with the main one's.
#[inline]
fn fit(
    name: &str,
    extent: Extent,
    shape: Shape,
    strides: [i64; 2],
    (main, its): (&str, Shape),
) -> Result<[i64; 2]> {
    let [rows, groups, cols] = its;
    let [row_stride, group_stride] = strides;
    let fitted = match extent {
        Extent::Elements => (shape == its).then_some(strides),
        Extent::Vector => match shape {
            [1, 1, width] if width == cols => Some([0, 0]),
            // With no groups there is no vector either, but the library would see one.
            _ if groups == 0 => None,
            [1, count, width] if [count, width] == [groups, cols] => Some([0, group_stride]),
            // A matrix of groups x cols.
            [count, 1, width] if [count, width] == [groups, cols] => Some([0, row_stride]),
            _ => None,
        },
        Extent::Rows => match shape {
            [r, g, 1] if [r, g] == [rows, groups] => Some(strides),
            // A matrix of rows x groups.
            [r, 1, g] if [r, g] == [rows, groups] => Some([row_stride, 1]),
            // One after the other.
            [1, 1, all] if Some(all) == rows.checked_mul(groups) => Some([groups as i64, 1]),
            _ => None,
        },
    };
    fitted.ok_or_else(|| misfit(name, extent, shape, (main, its)))
}

#[cold]
fn misfit(name: &str, extent: Extent, shape: Shape, (main, its): (&str, Shape)) -> Error {
    let [rows, groups, cols] = its;
    let wanted = match extent {
        Extent::Elements => text(its),
        Extent::Vector if groups > 1 => {
            format!("{} or {}", text([1, 1, cols]), text([1, groups, cols]))
        }
        Extent::Vector => text([1, 1, cols]),
        Extent::Rows => text([rows, groups, 1]),
    };
    let (shape, its) = (text(shape), text(its));
    Error::shape(format!("{name} is {shape}, but with {main} of {its} it must be {wanted}"))
}

fn text([rows, groups, cols]: Shape) -> String {
    format!("{rows} x {groups} x {cols}")
}

pub(crate) fn parts(launch: &Launch) -> (*mut c_void, usize, *mut c_void) {
    let workspace = if launch.workspace_size == 0 { null_mut() } else { launch.workspace };
    (workspace, launch.workspace_size, launch.stream)
}

/// The methods of every operation's builder.
macro_rules! call_methods {
    () => {
        /// Runs it on the CPU; done when it returns.
        ///
        /// # Errors
        /// The first tensor that does not fit the shape, or what the library refuses. Nothing has
        /// been written then.
        #[inline]
        pub fn run(mut self, context: &crate::Context) -> crate::Result<()> {
            self.call.run(context)
        }

        /// Puts it into a CUDA stream.
        ///
        /// # Errors
        /// As [`run`](Self::run).
        ///
        /// # Safety
        /// The stream is one of the context's device, the workspace is as the query tells, and all
        /// memory stays there, and is not used otherwise, until the stream has passed the call.
        pub unsafe fn launch(
            mut self,
            context: &crate::Context,
            launch: &crate::Launch,
        ) -> crate::Result<()> {
            // SAFETY: the caller's promise.
            unsafe { self.call.launch(context, launch) }
        }

        /// Puts it into a cudarc stream, with a workspace from that stream; every tensor was given
        /// for this stream ([`Input::cuda`](crate::Input::cuda)).
        ///
        /// # Errors
        /// As [`run`](Self::run); the stream is of another device than the context.
        #[cfg(feature = "cudarc")]
        pub fn run_on(
            mut self,
            context: &crate::Context,
            stream: &std::sync::Arc<::cudarc::driver::CudaStream>,
        ) -> crate::Result<()> {
            crate::cudarc::run_on(&mut self.call, context, stream)
        }

        /// Bytes of workspace that [`launch`](Self::launch) needs; it does not decrease as rows
        /// grow. [`run`](Self::run) takes care of its own.
        ///
        /// # Errors
        /// As [`run`](Self::run).
        pub fn workspace_size(&self, context: &crate::Context) -> crate::Result<usize> {
            self.call.workspace_size(context)
        }

        /// The kernel and configuration that would run, for logs and benchmarks.
        ///
        /// # Errors
        /// As [`run`](Self::run).
        pub fn kernel_name(&self, context: &crate::Context) -> crate::Result<String> {
            self.call.kernel_name(context)
        }
    };
}
pub(crate) use call_methods;
