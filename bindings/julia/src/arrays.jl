# Arrays as the library sees them: where, of which dtype, with which strides.

"""
    PointerArray{T}(pointer, size[, strides]; keep = nothing)

Memory that Julia knows by its address alone, for calls with a context that is given: a device
pointer of CUDA, or memory of the host. `strides` are in elements; without them there are no gaps.
The address is trusted. `keep` is held on to as long as this is.
"""
struct PointerArray{T, N}
    pointer::Ptr{Cvoid}
    size::NTuple{N, Int}
    strides::NTuple{N, Int}
    keep::Any
end

function PointerArray{T}(pointer, size::NTuple{N, Integer},
                         strides::NTuple{N, Integer}=dense_strides(size); keep=nothing) where {T, N}
    address = pointer isa Integer ? Ptr{Cvoid}(UInt(pointer)) : Ptr{Cvoid}(pointer)
    return PointerArray{T, N}(address, size, strides, keep)
end

dense_strides(size::NTuple{N, Integer}) where {N} = ntuple(i -> prod(size[1:i - 1]), Val(N))

Base.eltype(::PointerArray{T}) where {T} = T
Base.ndims(::PointerArray{T, N}) where {T, N} = N
Base.size(array::PointerArray) = array.size
Base.strides(array::PointerArray) = array.strides
Base.length(array::PointerArray) = prod(array.size)

# The library's dtype of an element type.
dtype_of(::Type{Float64}, name) = ABI.DTYPE_F64
dtype_of(::Type{Float32}, name) = ABI.DTYPE_F32
dtype_of(::Type{Float16}, name) = ABI.DTYPE_F16
dtype_of(::Type{UInt16}, name) = ABI.DTYPE_BF16
function dtype_of(::Type{T}, name) where {T}
    isbitstype(T) && sizeof(T) == 2 && nameof(T) === :BFloat16 && return ABI.DTYPE_BF16
    refuse(ABI.ERROR_DTYPE, name, " has elements of ", T, ", but they must be Float64, Float32, ",
           "Float16, BFloat16, or its bits as UInt16")
end

const Place = Tuple{Int32, Int32}  # device, ordinal
const HOST = (ABI.DEVICE_CPU, Int32(0))
const ANYWHERE = (Int32(0), Int32(0))

place_name(place::Place) = place == HOST ? "the CPU" : "CUDA device $(place[2])"

# The array that owns the memory of a view of views. What an extension for a GPU's arrays adds is
# methods of root_place, of root_stream and root_workspace (call.jl), and of address.
root(array::AbstractArray) = (owner = parent(array)) === array ? array : root(owner)
root(array::PointerArray) = array

# Where memory is.
place_of(array) = root_place(root(array))
root_place(::AbstractArray) = HOST
root_place(::PointerArray) = ANYWHERE

address(pointer::Ptr) = Ptr{Cvoid}(pointer)

# The address of an array's first element and its strides.
memory_of(array::StridedArray, name) = address(pointer(array)), strides(array)
memory_of(array::PointerArray, name) = array.pointer, array.strides
function memory_of(array::AbstractArray{T}, name) where {T}  # wrappers that lie in memory as well
    try
        return Ptr{Cvoid}(Base.unsafe_convert(Ptr{T}, array)), strides(array)
    catch problem
        problem isa Union{MethodError, ErrorException, ArgumentError} || rethrow()
        refuse(ABI.ERROR_NOT_SUPPORTED, name, " is a ", typeof(array),
               ", which has no pointer and strides: pass a copy")
    end
end

# A tensor as the library sees it, with N dimensions. Absent if dtype is 0.
struct Operand{N}
    data::Ptr{Cvoid}
    dtype::Int32
    size::NTuple{N, Int}
    strides::NTuple{N, Int}
end

absent(::Val{N}) where {N} =
    Operand{N}(C_NULL, ABI.DTYPE_NONE, ntuple(_ -> 0, Val(N)), ntuple(_ -> 0, Val(N)))

is_absent(operand::Operand) = operand.dtype == ABI.DTYPE_NONE

function operand(array::Union{AbstractArray, PointerArray}, name, place::Place)
    check_place(name, place_of(array), place)
    data, steps = memory_of(array, name)
    return Operand{ndims(array)}(data, dtype_of(eltype(array), name), size(array), steps)
end
operand(other, name, place::Place) = refuse_type(name, other)

@noinline refuse_type(name, @nospecialize(other)) = refuse(ABI.ERROR_VALUE,
    name, " must be an array, not ", other === nothing ? other : typeof(other))

check_place(name, own::Place, place::Place) =
    own == place || own == ANYWHERE || refuse(ABI.ERROR_DEVICE, name, " is in memory of ",
        place_name(own), ", but the call is for ", place_name(place))

# The same, of a tensor whose first dimension is the columns: the library does not stride over them.
function columns(array, name, place::Place)
    found = operand(array, name, place)
    isempty(found.size) &&
        refuse(ABI.ERROR_SHAPE, name, " has no dimensions, but it must have rows")
    found.size[1] <= 1 || found.strides[1] == 1 || refuse(ABI.ERROR_STRIDE,
        name, " has elements ", found.strides[1], " apart in its first dimension, but they must ",
        "be next to each other: pass a copy")
    return found
end
