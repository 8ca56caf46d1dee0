# Gated activations.

const ACTIVATIONS = (silu = ABI.ACTIVATION_SILU, gelu_tanh = ABI.ACTIVATION_GELU_TANH,
                     gelu_erf = ABI.ACTIVATION_GELU_ERF)

"""
    rmsnorm_glu!(y, gate, up; activation = :silu, overlap = false,
                 context = nothing, stream = nothing, workspace = nothing)

`y = activation(gate) * up`, element by element; returns `y`. `activation`: `:silu` (SwiGLU),
`:gelu_tanh` or `:gelu_erf` (GeGLU). All of one size; `y` may be `gate` or `up`. The halves of
packed columns are views: `view(packed, 1:n, :)` and `view(packed, n+1:2n, :)`. Dtypes, views,
errors and the other keywords are those of `rmsnorm!`.
"""
function rmsnorm_glu!(y, gate, up; activation::Symbol=:silu, overlap::Bool=false, context=nothing,
                      stream=nothing, workspace=nothing)
    chosen = context_for(context, gate, "gate")
    place = place_of(chosen)
    GC.@preserve y gate up begin
        main = columns(gate, "gate", place)
        y === nothing && refuse_type("y", y)
        up === nothing && refuse_type("up", up)
        rows = (rows_like(y, "y", main, place, "gate"), main,
                rows_like(up, "up", main, place, "gate"))
        params = glu_forward_params(main, rows, activation_of(activation),
                                    ABI.FLAG_OVERLAP * overlap)
        launch(ABI.glu_forward, ABI.glu_forward_workspace_size, chosen, params, gate, stream,
               workspace)
    end
    return y
end

"""
    rmsnorm_glu(gate, up; ...)

`rmsnorm_glu!` into a new array of gate's element type.
"""
rmsnorm_glu(gate, up; options...) = rmsnorm_glu!(new_like("gate", gate), gate, up; options...)

"""
    rmsnorm_glu_backward!(dgate, dup, dy, gate, up; activation = :silu, ...)

The gradients of `rmsnorm_glu!`; returns `(dgate, dup)`, of which one may be `nothing`:

    dgate = dy * up * activation'(gate)
    dup   = dy * activation(gate)

`dgate` may be `gate` or `dy`, `dup` may be `up` or `dy`. The keywords are those of `rmsnorm_glu!`.
"""
function rmsnorm_glu_backward!(dgate, dup, dy, gate, up; activation::Symbol=:silu,
                               overlap::Bool=false, context=nothing, stream=nothing,
                               workspace=nothing)
    chosen = context_for(context, gate, "gate")
    place = place_of(chosen)
    GC.@preserve dgate dup dy gate up begin
        main = columns(gate, "gate", place)
        dy === nothing && refuse_type("dy", dy)
        up === nothing && refuse_type("up", up)
        rows = (rows_like(dgate, "dgate", main, place, "gate"),
                rows_like(dup, "dup", main, place, "gate"),
                rows_like(dy, "dy", main, place, "gate"), main,
                rows_like(up, "up", main, place, "gate"))
        params = glu_backward_params(main, rows, activation_of(activation),
                                     ABI.FLAG_OVERLAP * overlap)
        launch(ABI.glu_backward, ABI.glu_backward_workspace_size, chosen, params, gate, stream,
               workspace)
    end
    return dgate, dup
end

"""
    rmsnorm_glu_backward(dy, gate, up; ...)

`rmsnorm_glu_backward!` into new arrays: `(dgate = ..., dup = ...)`, of the element types of gate
and up.
"""
function rmsnorm_glu_backward(dy, gate, up; options...)
    dgate, dup = new_like("gate", gate), new_like("up", up)
    rmsnorm_glu_backward!(dgate, dup, dy, gate, up; options...)
    return (dgate = dgate, dup = dup)
end

activation_of(name::Symbol) = haskey(ACTIVATIONS, name) ? ACTIVATIONS[name] :
    refuse(ABI.ERROR_VALUE, "activation = :", name, ", but it must be one of ", keys(ACTIVATIONS))

@noinline function glu_forward_params(main, rows, activation, flags)
    layout = lay_out(main, ("y", "gate", "up"), rows, false)
    y, gate, up = rows
    return ABI.GluForwardParams(
        sizeof(ABI.GluForwardParams), layout.rows, layout.groups, layout.cols, activation, flags,
        input(layout, gate), input(layout, up), output(layout, y))
end

@noinline function glu_backward_params(main, rows, activation, flags)
    layout = lay_out(main, ("dgate", "dup", "dy", "gate", "up"), rows, false)
    dgate, dup, dy, gate, up = rows
    return ABI.GluBackwardParams(
        sizeof(ABI.GluBackwardParams), layout.rows, layout.groups, layout.cols, activation, flags,
        input(layout, dy), input(layout, gate), input(layout, up), output(layout, dgate),
        output(layout, dup))
end
