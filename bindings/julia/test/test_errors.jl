# Bad input: an RMSNormError that names the argument, and nothing has been written.

"An array without memory."
struct NoMemory{N} <: AbstractArray{Float32, N}
    array::Array{Float32, N}
end
Base.size(a::NoMemory) = size(a.array)
Base.getindex(a::NoMemory, i::Int...) = a.array[i...]

mutable struct Call  # the arguments of one, and memory that must stay as it is
    y; h; x; residual; weight; bias; rstd; dy; dresidual_out; dx; dresidual; dweight; dbias; options
end
function good_call()
    rows() = fill(7f0, 8, 3, 4)
    input() = fill(1f0, 8, 3, 4)
    vector(value) = fill(value, 8)
    return Call(rows(), rows(), input(), input(), vector(1f0), vector(1f0), fill(7f0, 3, 4),
                input(), input(), rows(), rows(), vector(7f0), vector(7f0), NamedTuple())
end
forward_of(c) = add_rmsnorm!(c.y, c.h, c.x, c.residual, c.weight, c.bias; rstd=c.rstd, c.options...)
backward_of(c) = rmsnorm_backward!(c.dx, c.dy, c.x, c.weight; rstd=c.rstd, dweight=c.dweight,
                                   dresidual_out=c.dresidual_out, dresidual=c.dresidual,
                                   dbias=c.dbias, c.options...)

written(array) = array isa AbstractArray{Float32} && any(!=(7f0), array)
function expect_refused(call, code, start; edit)
    c = good_call()
    outputs = (c.y, c.h, c.dx, c.dresidual, c.dweight, c.dbias)
    edit(c)
    problem = error_of(() -> call(c))
    @test problem isa RMSNormError
    problem isa RMSNormError || return println(problem)
    @test (problem.code, startswith(problem.text, start)) == (code, true)
    startswith(problem.text, start) || println("'$(problem.text)' does not begin with '$start'")
    @test !any(written, outputs)
end

const ARGUMENTS = ((forward_of, (:y => "y", :h => "residual_out", :x => "x",
                                 :residual => "residual", :weight => "weight", :bias => "bias",
                                 :rstd => "rstd")),
                   (backward_of, (:dx => "dx", :dy => "dy", :x => "x", :weight => "weight",
                                  :rstd => "rstd", :dresidual_out => "dresidual_out",
                                  :dresidual => "dresidual", :dweight => "dweight",
                                  :dbias => "dbias")))

@testset "what fits is accepted" begin
    @test forward_of(good_call()) isa Tuple
    @test backward_of(good_call()) isa Array
end

for (call, arguments) in ARGUMENTS, (field, name) in arguments
    @testset "$call: $name" begin
        set(value) = c -> setfield!(c, field, value(getfield(c, field)))
        longer(array) = fill(7f0, (size(array) .+ 1)...)
        field == :x || expect_refused(call, ABI.ERROR_SHAPE, "$name has size "; edit=set(longer))
        expect_refused(call, ABI.ERROR_DTYPE, "$name has elements of Int32";
                       edit=set(array -> Int32.(array)))
        expect_refused(call, ABI.ERROR_VALUE, "$name must be an array, not Float64";
                       edit=set(array -> 1.0))
        expect_refused(call, ABI.ERROR_NOT_SUPPORTED, "$name is a "; edit=set(NoMemory))
        field == :rstd || expect_refused(call, ABI.ERROR_STRIDE, "$name has elements 2 apart";
            edit=set(array -> view(fill(7f0, 2 * size(array, 1), size(array)[2:end]...), 1:2:16,
                                   ntuple(_ -> :, ndims(array) - 1)...)))
    end
end

@testset "more strides than rows x groups" begin
    all_there = fill(7f0, 8, 3, 4, 5)
    x = view(fill(1f0, 16, 6, 8, 10), 1:8, 1:2:6, 1:2:8, 1:2:10)
    problem = error_of(() -> rmsnorm!(all_there, x))
    @test problem isa RMSNormError && startswith(problem.text, "x has strides ")
    problem = error_of(() -> rmsnorm!(x, all_there))
    @test problem isa RMSNormError && startswith(problem.text, "y has strides ")
    @test all(==(7f0), all_there)
    weight = ones(Float32, 8, 3)  # takes the groups: what is left has to be one
    x = view(fill(1f0, 8, 3, 8, 10), :, :, 1:2:8, 1:2:10)
    problem = error_of(() -> rmsnorm!(similar(x), x, weight))
    @test problem isa RMSNormError && startswith(problem.text, "x has strides ")
end

@testset "no dimensions, no columns, no groups" begin
    problem = error_of(() -> rmsnorm(fill(1f0)))
    @test problem isa RMSNormError && startswith(problem.text, "x has no dimensions")
    problem = error_of(() -> rmsnorm(zeros(Float32, 0, 3)))
    @test problem isa RMSNormError && problem.code == ABI.ERROR_SHAPE
    problem = error_of(() -> rmsnorm(zeros(Float32, 8, 0, 3), zeros(Float32, 8, 0)))
    @test problem isa RMSNormError && startswith(problem.text, "x has size (8, 0, 3)")
end

@testset "what the library refuses: $start" for (call, code, start, edit) in (
        (forward_of, ABI.ERROR_ALIAS, "", c -> c.h = c.y),
        (forward_of, ABI.ERROR_ALIAS, "", function (c)
            c.x, c.y, c.h = view(vec(c.y), 5:92), view(vec(c.y), 1:88), zeros(Float32, 88)
            c.residual, c.weight, c.bias, c.rstd = c.x, nothing, nothing, nothing
        end),
        (backward_of, ABI.ERROR_ALIAS, "", c -> c.dresidual = c.dx),
        (forward_of, ABI.ERROR_VALUE, "eps = -1", c -> c.options = (eps=-1,)),
        (backward_of, ABI.ERROR_VALUE, "eps = nan", c -> c.options = (eps=NaN,)),
        (forward_of, ABI.ERROR_VALUE, "weight_offset = ", c -> c.options = (weight_offset=Inf,)),
        (forward_of, ABI.ERROR_DTYPE, "", c -> c.y = fill(7.0, 8, 3, 4)),
        (forward_of, ABI.ERROR_DTYPE, "rstd.dtype", c -> c.rstd = fill(Float16(7), 3, 4)),
        (forward_of, ABI.ERROR_STREAM, "stream = ", c -> c.options = (stream=5,)))
    expect_refused(call, code, start; edit=edit)
end

@testset "what this package refuses: $start" for (code, start, edit) in (
        (ABI.ERROR_VALUE, "rounding = :twice", c -> c.options = (rounding=:twice,)),
        (ABI.ERROR_VALUE, "context must be", c -> c.options = (context=3,)),
        (ABI.ERROR_STREAM, "stream must be", c -> c.options = (stream="s",)),
        (ABI.ERROR_VALUE, "y must be an array, not nothing", c -> c.y = nothing),
        (ABI.ERROR_NULL, "residual must be", c -> c.residual = nothing))
    expect_refused(forward_of, code, start; edit=edit)
end

@testset "errors print as one line" begin
    problem = error_of(() -> rmsnorm!(zeros(Float32, 3), zeros(Float32, 3); eps=-1))
    said = sprint(showerror, problem)
    @test startswith(said, "RMSNormError: eps = -1") && !occursin('\n', said)
    @test endswith(said, "(1002)")
end

"An array that says it is on a GPU."
struct Elsewhere{T, N} <: DenseArray{T, N}
    array::Array{T, N}
end
Base.size(a::Elsewhere) = size(a.array)
Base.strides(a::Elsewhere) = strides(a.array)
Base.getindex(a::Elsewhere, i::Int...) = a.array[i...]
Base.unsafe_convert(::Type{Ptr{T}}, a::Elsewhere{T}) where {T} = pointer(a.array)
Base.elsize(::Type{<:Elsewhere{T}}) where {T} = sizeof(T)
RMSNorm.root_place(::Elsewhere) = (ABI.DEVICE_CUDA, Int32(7))

@testset "memory of another device" begin
    said = "is in memory of CUDA device 7, but the call is for the CPU"
    expect_refused(forward_of, ABI.ERROR_DEVICE, "weight $said";
                   edit=c -> c.weight = Elsewhere(c.weight))
    expect_refused(forward_of, ABI.ERROR_DEVICE, "y $said";
                   edit=c -> c.y = view(Elsewhere(c.y), :, :, :))
    expect_refused(backward_of, ABI.ERROR_DEVICE, "x $said";
                   edit=c -> (c.x = Elsewhere(c.x); c.options = (context=Context(),)))
    problem = error_of(() -> rmsnorm!(zeros(Float32, 4), Elsewhere(ones(Float32, 4))))
    @test problem isa RMSNormError && problem.code ÷ 1000 in (1, 2)  # no such device
end
