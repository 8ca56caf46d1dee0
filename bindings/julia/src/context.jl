# Contexts: a device, and what was decided about it once.

"""
    Context(device = :cpu; ordinal = 0, cpu_threads = 0, keep_cached = false, preload = false,
            check_pointers = false)

A `rmsnorm_context_t`, for the keyword `context` of every call; any number of threads may use one at
once. `device`: `:cpu` or `:cuda`. `cpu_threads`: how many threads a call on the CPU may use, the
caller's among them. The others are `RMSNORM_CONTEXT_*` of `rmsnorm.h`. Calls without one share a
plain one per device.
"""
mutable struct Context
    handle::Ptr{Cvoid}
    device::Int32
    ordinal::Int32

    function Context(device::Symbol=:cpu; ordinal::Integer=0, cpu_threads::Integer=0,
                     keep_cached::Bool=false, preload::Bool=false, check_pointers::Bool=false)
        haskey(DEVICES, device) ||
            refuse(ABI.ERROR_VALUE, "device = :", device, ", but it must be :cpu or :cuda")
        flags = ABI.CONTEXT_KEEP_CACHED * keep_cached | ABI.CONTEXT_PRELOAD * preload |
                ABI.CONTEXT_CHECK_POINTERS * check_pointers
        options = ABI.ContextOptions(sizeof(ABI.ContextOptions), DEVICES[device],
                                     as_int32("ordinal", ordinal), flags,
                                     as_int32("cpu_threads", cpu_threads),
                                     C_NULL, C_NULL, C_NULL, C_NULL)
        handle = Ref(C_NULL)
        check(ABI.context_create(functions(), Ref(options), handle))
        return finalizer(destroy, new(handle[], options.device, options.ordinal))
    end
end

const DEVICES = Dict(:cpu => ABI.DEVICE_CPU, :cuda => ABI.DEVICE_CUDA)

function as_int32(name::String, value::Integer)
    typemin(Int32) <= value <= typemax(Int32) ||
        refuse(ABI.ERROR_VALUE, name, " = ", value, ", but it must fit into 32 bits")
    return Int32(value)
end

function destroy(context::Context)
    handle, context.handle = context.handle, C_NULL
    ABI.context_destroy(FUNCTIONS[], handle)
end

Base.show(io::IO, context::Context) =
    print(io, "RMSNorm.Context(", place_name((context.device, context.ordinal)), ")")

const CONTEXTS = Dict{Tuple{Int32, Int32}, Context}()
const CONTEXTS_LOCK = ReentrantLock()
const CPU_CONTEXT = Ref{Union{Nothing, Context}}(nothing)  # CONTEXTS' one, found without the lock

"The context that calls on a device share unless they are given one."
function shared_context(place::Tuple{Int32, Int32})
    context = CPU_CONTEXT[]
    context !== nothing && place == (ABI.DEVICE_CPU, Int32(0)) && return context
    lock(CONTEXTS_LOCK) do
        get!(CONTEXTS, place) do
            place[1] == ABI.DEVICE_CUDA ? Context(:cuda; ordinal=place[2]) :
                                          CPU_CONTEXT[] = Context()
        end
    end
end

"""
    set_cpu_threads(count)

Lets calls on the CPU that are not given a context use up to `count` threads, the caller's among
them; 0 and 1, the default: the caller's alone. Results do not depend on it, not in one bit.
"""
function set_cpu_threads(count::Integer)
    context = Context(; cpu_threads=count)
    lock(CONTEXTS_LOCK) do
        CONTEXTS[(ABI.DEVICE_CPU, Int32(0))] = context
        CPU_CONTEXT[] = context
    end
    return nothing
end
