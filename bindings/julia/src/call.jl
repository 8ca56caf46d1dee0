# What every operation's call has in common: its context, its stream, its workspace.

# context: the caller's, or nothing for the one that all calls with the main tensor's device share.
context_for(context::Context, main, name) = context
context_for(::Nothing, main, name) = refuse_type(name, main)
context_for(::Nothing, main::AbstractArray, name) = shared_context(place_of(main))
context_for(::Nothing, main::PointerArray, name) =
    refuse(ABI.ERROR_NULL, "context must be given: ", name, " is a bare pointer")
context_for(other, main, name) =
    refuse(ABI.ERROR_VALUE, "context must be a Context, not a ", typeof(other))

place_of(context::Context) = (context.device, context.ordinal)

# stream: a cudaStream_t as a pointer or a number, or nothing for the one that x's package works in.
stream_for(::Nothing, x) = root_stream(root(x))
stream_for(stream::Union{Ptr, Integer}, x) = Ptr{Cvoid}(UInt(stream))
stream_for(stream, x) =
    refuse(ABI.ERROR_STREAM, "stream must be a pointer or a number, not a ", typeof(stream))
root_stream(x) = C_NULL

# workspace: nothing for new memory; a Vector{UInt8} to be used again, which grows; or a function
# that is given a number of bytes and returns an array of the device's memory.
workspace_of(::Nothing, x, place::Place, bytes::Int) = root_workspace(root(x), place, bytes)
workspace_of(workspace::Vector{UInt8}, x, place::Place, bytes::Int) =
    length(workspace) < bytes ? resize!(workspace, bytes) : workspace
function workspace_of(allocate, x, place::Place, bytes::Int)
    applicable(allocate, bytes) || refuse(ABI.ERROR_WORKSPACE,
        "workspace must be a Vector{UInt8} or a function of bytes, not a ", typeof(allocate))
    return allocate(bytes)
end
function root_workspace(x, place::Place, bytes::Int)
    place == HOST || refuse(ABI.ERROR_WORKSPACE,
        "workspace must be given: this call needs ", bytes, " bytes of memory of ",
        place_name(place))
    return Vector{UInt8}(undef, bytes)
end

# Calls one of the library's operations. All arrays that params points to are the caller's to keep.
function launch(call::Call, query::Query, context::Context, params, x, stream,
                workspace) where {Call, Query}
    pointer = stream_for(stream, x)
    bytes = ask(query, context, params)
    bytes == 0 && return enqueue(call, context, params, C_NULL, 0, pointer)
    place = place_of(context)
    memory = workspace_of(workspace, x, place, bytes)
    GC.@preserve memory begin
        check_place("workspace", place_of(memory), place)
        data, _ = memory_of(memory, "workspace")
        enqueue(call, context, params, data, length(memory) * sizeof(eltype(memory)), pointer)
    end
end

# The bytes of workspace that a call needs.
@noinline function ask(query::Query, context::Context, params) where {Query}
    bytes = Ref{Csize_t}(0)
    GC.@preserve context check(query(FUNCTIONS[], context.handle, Ref(params), bytes))
    return Int(bytes[])
end

@noinline function enqueue(call::Call, context::Context, params, data::Ptr{Cvoid}, size::Int,
                           stream::Ptr{Cvoid}) where {Call}
    GC.@preserve context check(call(FUNCTIONS[], context.handle, Ref(params), data, size, stream))
end

function rounding_of(name::Symbol)
    name === :once && return ABI.ROUNDING_ONCE
    name === :llama && return ABI.ROUNDING_LLAMA
    refuse(ABI.ERROR_VALUE, "rounding = :", name, ", but it must be :once or :llama")
end
