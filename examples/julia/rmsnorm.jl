#=
The C example (../c/rmsnorm.c) in Julia, on the CPU: what one norm of a trained decoder sees, in
fp32, fp16 and bf16, is read from .npy files, and

  fused add   h = x + residual, y = RMSNorm(h), and rstd for later
  forward     y = RMSNorm(h)
  backward    dx and dweight from dy, h, rstd, and dh, the gradient that h gets past the norm

are judged by the formulas written out in BigFloat, and timed on the same data repeated until no
cache holds it. Exits with 1 and one line if anything is wrong.

usage: julia --project=bindings/julia examples/julia/rmsnorm.jl tests/data
=#
using RMSNorm

const EPS = 1e-6  # the model's
const REPEATS = 7
const LARGE = 8 << 20  # elements of an array that is larger than caches

function die(text)
    println(stderr, "rmsnorm: ", text)
    exit(1)
end

# ---- The data ------------------------------------------------------------------------------------

const TYPES = Dict("<f4" => Float32, "<f2" => Float16, "<f8" => Float64, "<u2" => UInt16)

"A .npy file of version 1.0. C's rows are Julia's columns: (96, 256) there is (256, 96) here."
function read_npy(path)
    isfile(path) || die("$path: no such file")
    bytes = read(path)
    length(bytes) > 10 && bytes[1:7] == b"\x93NUMPY\x01" ||
        die("$path: not a .npy file of version 1.0")
    start = 10 + bytes[9] + 256 * Int(bytes[10])
    header = String(bytes[11:start])
    fields = match(r"'descr': '(.*?)', 'fortran_order': False, 'shape': \((\d+),(?: (\d+))?\)",
                   header)
    fields !== nothing && haskey(TYPES, fields[1]) ||
        die("$path: of another type or order: $header")
    shape = [parse(Int, each) for each in fields.captures[2:3] if each !== nothing]
    elements = copy(reinterpret(TYPES[fields[1]], bytes[start + 1:end]))
    length(elements) == prod(shape) || die("$path: its size does not match its shape")
    return reshape(elements, reverse(shape)...)
end

struct Norm{T}
    dtype::String
    x::Matrix{T}
    residual::Matrix{T}
    weight::Vector{T}
    dy::Matrix{T}
    dh::Matrix{T}
end

function read_norm(path, dtype)
    array(name) = read_npy("$path.$name.npy")
    norm = Norm(dtype, array("x"), array("residual"), array("weight"), array("dy"), array("dh"))
    all(size(each) == size(norm.x) for each in (norm.residual, norm.dy, norm.dh)) &&
        length(norm.weight) == size(norm.x, 1) ||
        die("$path: the arrays' shapes do not go together")
    return norm
end

# ---- Judging -------------------------------------------------------------------------------------

setprecision(BigFloat, 96)

exact(value::Base.IEEEFloat) = BigFloat(value)
exact(bits::UInt16) = BigFloat(reinterpret(Float32, UInt32(bits) << 16))  # of bfloat16

digits_of(::Type{Float32}) = (24, -149)
digits_of(::Type{Float16}) = (11, -24)
digits_of(::Type{UInt16}) = (8, -133)

function ulp(value, T)
    digits, smallest = digits_of(T)
    return exp2(BigFloat(iszero(value) ? smallest : max(exponent(value) + 1 - digits, smallest)))
end

"""
The largest error, in ulps of the larger of result and terms: a sum that cancels keeps the rounding
errors of its terms. One beyond the library's promise (rmsnorm.h, Numerics) is the end.
"""
function judge(what, got::AbstractArray{T}, wanted, terms=zero(wanted); bound=0.501) where {T}
    worst = 0.0
    for i in eachindex(got)
        error = abs(exact(got[i]) - wanted[i])
        error <= bound * ulp(wanted[i], T) + terms[i] * exp2(BigFloat(-40)) ||
            die("$what[$i] is $(exact(got[i])), but exactly it is $(wanted[i])")
        worst = max(worst, Float64(error / ulp(max(abs(wanted[i]), terms[i]), T)))
    end
    return worst
end

function judge_y(norm, y, h)
    wide, weight = exact.(h), exact.(norm.weight)
    mean = sum(abs2, wide, dims=1) ./ size(h, 1)
    return judge("y", y, wide ./ sqrt.(mean .+ EPS) .* weight)
end

judge_add(norm, y, h) = max(
    judge("h", h, exact.(norm.x) .+ exact.(norm.residual); bound=0.5), judge_y(norm, y, h))

function judge_backward(norm, h, rstd, dx, dweight)
    dy, dh = exact.(norm.dy), exact.(norm.dh)
    steps = reshape(exact.(rstd), 1, :)
    xhat, wdy = exact.(h) .* steps, exact.(norm.weight) .* dy
    mean(values) = sum(values, dims=1) ./ size(h, 1)
    wanted = steps .* (wdy .- xhat .* mean(wdy .* xhat)) .+ dh
    terms = steps .* (abs.(wdy) .+ abs.(xhat) .* mean(abs.(wdy .* xhat))) .+ abs.(dh)
    return max(judge("dx", dx, wanted, terms),
               judge("dweight", dweight, vec(sum(dy .* xhat, dims=2)),
                     vec(sum(abs.(dy .* xhat), dims=2))))
end

# ---- The calls -----------------------------------------------------------------------------------

"Seconds of one call: a median, after a warm-up."
function time_call(call)
    call()
    return sort([@elapsed(call()) for _ in 1:REPEATS])[REPEATS ÷ 2 + 1]
end

function run_norm(norm::Norm{T}) where {T}
    tiles = LARGE ÷ length(norm.x) + 1
    # One call on the data as it is, and on the data repeated.
    small = buffers(norm, 1)
    large = buffers(norm, tiles)
    bytes = sizeof(large.x)
    report(operation, error, tensors, call) = println(
        rpad("cpu", 8), rpad(norm.dtype, 7), rpad(operation, 11), lpad(rounded(error, 4), 9), "  ",
        lpad(rounded(1e-9 * tensors * bytes / time_call(call), 1), 8))

    fused_add(b) = add_rmsnorm!(b.y, b.h, b.x, b.residual, norm.weight; eps=EPS, rstd=b.rstd)
    fused_add(small)
    report("fused add", judge_add(norm, small.y, small.h), 4, () -> fused_add(large))

    forward(b) = rmsnorm!(b.y, b.h, norm.weight; eps=EPS)
    forward(small)
    report("forward", judge_y(norm, small.y, small.h), 2, () -> forward(large))

    workspace = UInt8[]
    backward(b) = rmsnorm_backward!(b.dx, b.dy, b.h, norm.weight; rstd=b.rstd, dresidual_out=b.dh,
                                    dweight=b.dweight, workspace=workspace)
    backward(small)
    error = judge_backward(norm, small.h, small.rstd, small.dx, small.dweight)
    report("backward", error, 4, () -> backward(large))
end

function buffers(norm::Norm{T}, tiles) where {T}
    tiled(array) = repeat(array, 1, tiles)
    x = tiled(norm.x)
    new() = similar(x)
    return (x = x, residual = tiled(norm.residual), dy = tiled(norm.dy), dh = tiled(norm.dh),
            y = new(), h = new(), dx = new(), rstd = zeros(Float32, size(x, 2)),
            dweight = zeros(Float32, size(x, 1)))
end

function rounded(value, digits)
    whole, part = split(string(round(value; digits=digits)), '.')
    return "$whole.$(rpad(part, digits, '0'))"
end

function main(arguments)
    length(arguments) == 1 || die("usage: rmsnorm.jl FOLDER, where FOLDER holds the .npy files")
    folder = only(arguments)
    println("librmsnorm ", RMSNorm.library().build_info)
    println("error: the largest, in ulps against formulas in BigFloat; for gradients, in ulps of")
    println("the terms that they sum. GB/s: of what a call must read and write.\n")
    println("device  dtype  operation  error/ulp      GB/s")
    for (name, dtype) in (("layer2_mlp", "fp32"), ("layer2_mlp_f16", "fp16"),
                          ("layer2_mlp_bf16", "bf16"))
        run_norm(read_norm(joinpath(folder, name), dtype))
    end
end

main(ARGS)
