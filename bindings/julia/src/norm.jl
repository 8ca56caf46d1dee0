# The operations.

"""
    rmsnorm!(y, x, weight = nothing, bias = nothing; eps = 1e-6, weight_offset = 0,
             rounding = :once, rstd = nothing, overlap = false,
             context = nothing, stream = nothing, workspace = nothing)

Normalises each column of `x` (its first dimension) into `y`, and returns `y`:

    y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset) + bias

`x`: (cols, ...). `y`: of the same size; `x` itself is allowed. `weight`, `bias`: (cols,), or
(cols, groups) for x (cols, groups, ...); absent 1 and 0. Each of its own dtype, Float64 only
together. Gemma's `1 + weight` is `weight_offset = 1`. `rounding = :llama` rounds `x / sqrt(...)` to
x's dtype as well, as Hugging Face's LlamaRMSNorm does.

`rstd`: an array of x's size without the first dimension, Float32 (Float64 where all is), which
receives `1 / sqrt(...)` for `rmsnorm_backward!`. `context`: a `RMSNorm.Context`. `stream`: a
cudaStream_t, as a pointer or a number. `workspace`: a `Vector{UInt8}` for use again, which grows,
or a function that is given a number of bytes and returns an array of the device's memory.
`overlap`: the library's hint `RMSNORM_FLAG_OVERLAP`.

Throws `RMSNormError` with the argument's name before anything is written.
"""
function rmsnorm!(y, x, weight=nothing, bias=nothing; rstd=nothing, options...)
    forward!(y, nothing, rstd, x, nothing, weight, bias; options...)
    return y
end

"""
    rmsnorm(x, weight = nothing, bias = nothing; ...)

`rmsnorm!` into a new array of x's element type.
"""
rmsnorm(x, weight=nothing, bias=nothing; options...) =
    rmsnorm!(new_like("x", x), x, weight, bias; options...)

"""
    add_rmsnorm!(y, h, x, residual, weight = nothing, bias = nothing; ...)

`rmsnorm!` fused with a residual add, in one pass over memory; returns `(y, h)`:

    h = x + residual
    y = h / sqrt(mean(h^2) + eps) * (weight + weight_offset) + bias

`residual`, `h`: of x's size; `h` may be `residual` or `x`, and `y` may be `x`. h is rounded to its
dtype before it is normalised. `h = nothing` keeps none, and rounds it to the dtype of x and
residual, to Float32 where they differ. The keywords are those of `rmsnorm!`.
"""
function add_rmsnorm!(y, h, x, residual, weight=nothing, bias=nothing; rstd=nothing, options...)
    residual === nothing && refuse(ABI.ERROR_NULL, "residual must be an array, not nothing")
    forward!(y, h, rstd, x, residual, weight, bias; options...)
    return y, h
end

"""
    add_rmsnorm(x, residual, weight = nothing, bias = nothing; ...)

`add_rmsnorm!` into new arrays: y of x's element type, h of residual's.
"""
add_rmsnorm(x, residual, weight=nothing, bias=nothing; options...) =
    add_rmsnorm!(new_like("x", x), new_like("residual", residual), x, residual, weight, bias;
                 options...)

"""
    rmsnorm_backward!(dx, dy, x, weight = nothing; rstd = nothing, dresidual_out = nothing,
                      dweight = nothing, dbias = nothing, dresidual = nothing, accumulate = false,
                      eps = 1e-6, weight_offset = 0, overlap = false,
                      context = nothing, stream = nothing, workspace = nothing)

The gradients of `rmsnorm!` and `add_rmsnorm!`, into what is given of `dx`, `dweight`, `dbias` and
`dresidual`; returns `dx`, which may be `nothing`. With `xhat = x * rstd` and
`w = weight + weight_offset`:

    dx      = rstd * (w * dy - xhat * mean(w * dy * xhat)) + dresidual_out
    dweight = the sum of dy * xhat over all columns
    dbias   = the sum of dy

`dy`: the gradient of y. `x`: what was normalised, the h of `add_rmsnorm!`; dx is then the gradient
of both x and residual. `rstd`: what the forward call gave; absent, it is computed from x and eps.
`dresidual_out`: the gradient that arrives at h by other ways. `dresidual`: dx once more, for a
residual of another dtype. `dweight`, `dbias`: of weight's size. `accumulate`: add to what they
hold. `dx` may be `dy`, `x` or `dresidual_out`. The other keywords are those of `rmsnorm!`.
"""
function rmsnorm_backward!(dx, dy, x, weight=nothing; options...)
    backward!(dx, dy, x, weight; options...)
    return dx
end

"""
    rmsnorm_backward(dy, x, weight = nothing, bias = nothing; rstd, dresidual_out, ...)

`rmsnorm_backward!` into new arrays: `(dx = ..., dweight = ..., dbias = ...)`, of the element types
of x, weight and bias; `nothing` where there is no weight, no bias.
"""
function rmsnorm_backward(dy, x, weight=nothing, bias=nothing; options...)
    dx, dweight = new_like("x", x), new_like("weight", weight)
    dbias = new_like("bias", bias)
    backward!(dx, dy, x, weight; dweight=dweight, dbias=dbias, options...)
    return (dx = dx, dweight = dweight, dbias = dbias)
end

new_like(name, array::AbstractArray) = similar(array)
new_like(name, ::Nothing) = nothing
new_like(name, other) = refuse(ABI.ERROR_VALUE, name,
    " must be an array for a new one like it, not a ", typeof(other), ": use the function with !")

function forward!(y, residual_out, rstd, x, residual, weight, bias; eps::Real=1e-6,
                  weight_offset::Real=0, rounding::Symbol=:once, overlap::Bool=false,
                  context=nothing, stream=nothing, workspace=nothing)
    chosen = context_for(context, x, "x")
    place = place_of(chosen)
    GC.@preserve y residual_out rstd x residual weight bias begin
        main = columns(x, "x", place)
        y === nothing && refuse_type("y", y)
        rows = (rows_like(y, "y", main, place),
                rows_like(residual_out, "residual_out", main, place),
                row_numbers(rstd, "rstd", main, place), main,
                rows_like(residual, "residual", main, place))
        vectors = vector_like(weight, "weight", main, place), vector_like(bias, "bias", main, place)
        params = forward_params(main, rows, vectors, per_group(weight) || per_group(bias),
                                Float64(eps), Float64(weight_offset), rounding_of(rounding),
                                ABI.FLAG_OVERLAP * overlap)
        launch(ABI.forward, ABI.forward_workspace_size, chosen, params, x, stream, workspace)
    end
end

@noinline function forward_params(main, rows, vectors, per_group, eps, weight_offset, rounding,
                                  flags)
    layout = lay_out(main, ("y", "residual_out", "rstd", "x", "residual"), rows, per_group)
    y, residual_out, rstd, x, residual = rows
    weight, bias = vectors
    return ABI.ForwardParams(
        sizeof(ABI.ForwardParams), layout.rows, layout.groups, layout.cols, eps, weight_offset,
        rounding, flags, input(layout, x), input(layout, residual), input(weight), input(bias),
        output(layout, y), output(layout, residual_out), output(layout, rstd))
end

function backward!(dx, dy, x, weight; rstd=nothing, dresidual_out=nothing, dweight=nothing,
                   dbias=nothing, dresidual=nothing, accumulate::Bool=false, eps::Real=1e-6,
                   weight_offset::Real=0, overlap::Bool=false, context=nothing, stream=nothing,
                   workspace=nothing)
    chosen = context_for(context, x, "x")
    place = place_of(chosen)
    GC.@preserve dx dy x weight rstd dresidual_out dweight dbias dresidual begin
        main = columns(x, "x", place)
        dy === nothing && refuse_type("dy", dy)
        rows = (rows_like(dx, "dx", main, place), rows_like(dresidual, "dresidual", main, place),
                rows_like(dy, "dy", main, place), main, row_numbers(rstd, "rstd", main, place),
                rows_like(dresidual_out, "dresidual_out", main, place))
        vectors = vector_like(weight, "weight", main, place),
                  vector_like(dweight, "dweight", main, place),
                  vector_like(dbias, "dbias", main, place)
        params = backward_params(main, rows, vectors,
                                 per_group(weight) || per_group(dweight) || per_group(dbias),
                                 Float64(eps), Float64(weight_offset),
                                 ABI.FLAG_OVERLAP * overlap | ABI.FLAG_ACCUMULATE * accumulate)
        launch(ABI.backward, ABI.backward_workspace_size, chosen, params, x, stream, workspace)
    end
end

@noinline function backward_params(main, rows, vectors, per_group, eps, weight_offset, flags)
    layout = lay_out(main, ("dx", "dresidual", "dy", "x", "rstd", "dresidual_out"), rows, per_group)
    dx, dresidual, dy, x, rstd, dresidual_out = rows
    weight, dweight, dbias = vectors
    return ABI.BackwardParams(
        sizeof(ABI.BackwardParams), layout.rows, layout.groups, layout.cols, eps, weight_offset,
        ABI.ROUNDING_ONCE, flags, input(layout, dy), input(layout, x), input(weight),
        input(layout, rstd), input(layout, dresidual_out), output(layout, dx),
        output(layout, dresidual), output(dweight), output(dbias))
end
