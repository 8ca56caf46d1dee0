# CuArrays in every call: on their device, in the stream of the current task.
module RMSNormCUDAExt

using CUDA
using RMSNorm
using RMSNorm: ABI

RMSNorm.root_place(x::CuArray) = (ABI.DEVICE_CUDA, Int32(CUDA.deviceid(CUDA.device(x))))

RMSNorm.address(pointer::CuPtr) = Ptr{Cvoid}(UInt(pointer))

# The task has a stream of its own on each device.
RMSNorm.root_stream(x::CuArray) =
    CUDA.device!(() -> Ptr{Cvoid}(CUDA.stream().handle), CUDA.device(x))

# Freed in the order of that stream.
RMSNorm.root_workspace(x::CuArray, place, bytes::Int) =
    CUDA.device!(() -> CuArray{UInt8}(undef, bytes), CUDA.device(x))

end
