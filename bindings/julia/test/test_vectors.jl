# The test vectors that all languages share: through the C functions, and through this package's.
# They are beside the package in the project's source tree, and skipped elsewhere.

const VECTORS = joinpath(TREE, "tests", "vectors")
const VECTOR_DTYPES = Dict("f32" => (Float32, ABI.DTYPE_F32), "f16" => (Float16, ABI.DTYPE_F16),
                           "bf16" => (UInt16, ABI.DTYPE_BF16), "f64" => (Float64, ABI.DTYPE_F64))

# A name, and text, a whole number or another one.
const FIELD = r"""\G"(\w+(?:\.\w+)?)":\ (?:"([^"\\{}]*)"|(-?\d+)(?![.e])|(-?[\d.]+(?:e[+-]?\d+)?))
                  (?:,\ |$)"""x

"One line of cases.json: an object of numbers and of strings without escapes. Strict."
function read_object(line)
    object = Dict{String, Union{String, Int64, Float64}}()
    whole = match(r"^\{(.*)\},?$", line)
    whole === nothing && error("not an object: $line")
    inside, place = whole[1], 1
    while place <= ncodeunits(inside)
        field = match(FIELD, inside, place)
        field === nothing && error("not a field of a test vector: $(inside[place:end])")
        key, text, integer, number = field.captures
        haskey(object, key) && error("$key is there twice: $line")
        object[key] = text !== nothing ? String(text) :
                      integer !== nothing ? parse(Int64, integer) : parse(Float64, number)
        place += ncodeunits(field.match)
    end
    return object
end

"A vector's memories as they are before the call (or after), each an array of bits."
struct Memories
    vector::Dict{String, Union{String, Int64, Float64}}
    data::Vector{UInt8}
    own::Dict{String, Array}
end

tensors(vector) = [key[1:end - length(".dtype")] for key in keys(vector) if endswith(key, ".dtype")]
dtype(vector, name) = VECTOR_DTYPES[vector["$name.dtype"]]

function bytes_of(vector, data, name, when)
    count = vector["$name.elements"] * sizeof(dtype(vector, name)[1])
    place = get(vector, "$name.$when", nothing)
    place === nothing || return data[place + 1:place + count]
    return when == "before" ? fill(0xa5, count) : bytes_of(vector, data, name, "before")
end

elements(bytes, T) = isempty(bytes) ? T[] : copy(reinterpret(T, bytes))
memories(vector, data) = Memories(vector, data, Dict{String, Array}(
    name => elements(bytes_of(vector, data, name, "before"), dtype(vector, name)[1])
    for name in tensors(vector) if !haskey(vector, "$name.memory")))

memory_of_tensor(m::Memories, name) = m.own[get(m.vector, "$name.memory", name)]
data_of(m::Memories, name) = let memory = memory_of_tensor(m, name)
    isempty(memory) ? C_NULL : Ptr{Cvoid}(pointer(memory, 1 + m.vector["$name.offset"]))
end

"Every element that is not as it should be after the call."
function wrong_elements(m::Memories)
    nan(value) = isnan(exact(value))
    found = String[]
    for (name, memory) in m.own
        wanted = elements(bytes_of(m.vector, m.data, name, "after"), eltype(memory))
        for i in eachindex(memory)
            bits_of(memory[i]) == bits_of(wanted[i]) || (nan(memory[i]) && nan(wanted[i])) ||
                push!(found, "$name[$i]")
        end
    end
    return found
end

# ---- The C functions -----------------------------------------------------------------------------

function c_tensor(m::Memories, name, T)
    haskey(m.vector, "$name.dtype") || return T()
    return T(data_of(m, name), m.vector["$name.row_stride"], m.vector["$name.group_stride"],
             dtype(m.vector, name)[2], 0)
end

function c_params(m::Memories, T)
    values = map(fieldnames(T), fieldtypes(T)) do name, type
        name === :struct_size ? sizeof(T) :
        type in (ABI.Input, ABI.Tensor) ? c_tensor(m, String(name), type) : m.vector[String(name)]
    end
    return T(values...)
end

const OPERATIONS = Dict(
    "forward" => (ABI.ForwardParams, ABI.forward, ABI.forward_workspace_size),
    "backward" => (ABI.BackwardParams, ABI.backward, ABI.backward_workspace_size),
    "glu_forward" => (ABI.GluForwardParams, ABI.glu_forward, ABI.glu_forward_workspace_size),
    "glu_backward" => (ABI.GluBackwardParams, ABI.glu_backward, ABI.glu_backward_workspace_size))

function run_in_c(vector, data, context)
    functions, m = RMSNorm.functions(), memories(vector, data)
    type, call, query = OPERATIONS[vector["op"]]
    params, size = Ref{type}(c_params(m, type)), Ref{Csize_t}(0)
    GC.@preserve m begin
        status = query(functions, context.handle, params, size)
        if status == ABI.SUCCESS
            workspace = Vector{UInt8}(undef, size[])
            status = GC.@preserve workspace call(functions, context.handle, params,
                pointer(workspace), size[], C_NULL)
        end
    end
    @test status == vector["status"]
    status == ABI.SUCCESS ||
        @test startswith(RMSNorm.failure(functions, status).text, vector["error"])
    @test isempty(wrong_elements(m))
end

# ---- This package's functions --------------------------------------------------------------------

"A tensor as an Array where it has no gaps, else by its address."
function array_of(m::Memories, name)
    vector = m.vector
    haskey(vector, "$name.dtype") || return nothing
    groups = max(vector["groups"], 1)
    size = (vector["cols"], groups, vector["rows"])
    steps = (1, vector["$name.group_stride"], vector["$name.row_stride"])
    if name in ("weight", "bias", "dweight", "dbias")
        shared = groups == 1 || steps[2] == 0
        size, steps = shared ? (size[1:1], steps[1:1]) : (size[1:2], steps[1:2])
    elseif name == "rstd"
        size, steps = size[2:3], steps[2:3]
    end
    T = dtype(vector, name)[1]
    natural = RMSNorm.dense_strides(size)
    all(i -> size[i] == 1 || steps[i] == natural[i], eachindex(size)) &&
        data_of(m, name) != C_NULL &&
        return unsafe_wrap(Array, Ptr{T}(data_of(m, name)), size)
    return PointerArray{T}(data_of(m, name), size, steps)
end

function run_in_julia(vector, data, context)
    m = memories(vector, data)
    array(name) = array_of(m, name)
    overlap = vector["flags"] & ABI.FLAG_OVERLAP != 0
    if startswith(vector["op"], "glu")
        activation = keys(RMSNorm.ACTIVATIONS)[findfirst(==(vector["activation"]),
                                                         values(RMSNorm.ACTIVATIONS))]
        more = (activation=activation, overlap=overlap, context=context)
        GC.@preserve m if vector["op"] == "glu_forward"
            rmsnorm_glu!(array("y"), array("gate"), array("up"); more...)
        else
            rmsnorm_glu_backward!(array("dgate"), array("dup"), array("dy"), array("gate"),
                                  array("up"); more...)
        end
        return @test isempty(wrong_elements(m))
    end
    common = (eps=vector["eps"], weight_offset=vector["weight_offset"], overlap=overlap,
              context=context)
    GC.@preserve m begin
        if vector["op"] == "forward"
            rounding = vector["rounding"] == ABI.ROUNDING_LLAMA ? :llama : :once
            more = (rstd=array("rstd"), rounding=rounding)
            if array("residual") === nothing
                rmsnorm!(array("y"), array("x"), array("weight"), array("bias"); common..., more...)
            else
                add_rmsnorm!(array("y"), array("residual_out"), array("x"), array("residual"),
                             array("weight"), array("bias"); common..., more...)
            end
        else
            rmsnorm_backward!(array("dx"), array("dy"), array("x"), array("weight"); common...,
                              rstd=array("rstd"), dresidual_out=array("dresidual_out"),
                              dresidual=array("dresidual"), dweight=array("dweight"),
                              dbias=array("dbias"),
                              accumulate=vector["flags"] & ABI.FLAG_ACCUMULATE != 0)
        end
    end
    @test isempty(wrong_elements(m))
end

# --------------------------------------------------------------------------------------------------

@testset "the reader is strict" begin
    @test read_object("{\"a\": 1, \"b.c\": -2.5e-3, \"d\": \"x y\"},") ==
          Dict("a" => 1, "b.c" => -2.5e-3, "d" => "x y")
    @test read_object("{\"a\": \"x, y\"}") == Dict("a" => "x, y")
    for line in ("{\"a\": }", "{\"a\": 1, , \"b\": 2}", "{\"a\": 1 \"b\": 2}",
                 "{a: 1}", "{\"a\": [1]}", "{\"a\": 1, \"a\": 2}",
                 "{\"a\": \"x\\n\"}", "{\"a\": nan}")
        @test error_of(() -> read_object(line)) isa ErrorException
    end
end

if isdir(VECTORS)
    let data = read(joinpath(VECTORS, "data.bin")), context = Context(),
        vectors = [read_object(line) for line in eachline(joinpath(VECTORS, "cases.json"))
                   if startswith(line, "{")]
        @testset "there are vectors" begin
            @test length(vectors) > 100
        end
        for vector in vectors
            @testset "$(vector["name"]), in C" begin
                run_in_c(vector, data, context)
            end
            vector["status"] == 0 && @testset "$(vector["name"]), in Julia" begin
                run_in_julia(vector, data, context)
            end
        end
    end
else
    @testset "vectors" begin
        @test_skip "tests/vectors is not here"
    end
end
