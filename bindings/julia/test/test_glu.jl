# Gated activations, against their formulas in BigFloat.

function mpfr_erf(x::BigFloat)
    y = BigFloat()
    ccall((:mpfr_erf, :libmpfr), Int32, (Ref{BigFloat}, Ref{BigFloat}, Int32), y, x, 0)
    return y
end

"s(g) and s'(g), where the activation is g * s(g)."
function sigmoid(g::BigFloat, activation)
    if activation === :silu
        s = 1 / (1 + exp(-g))
        return s, s * (1 - s)
    elseif activation === :gelu_erf
        return (1 + mpfr_erf(g / sqrt(big(2)))) / 2, exp(-g^2 / 2) / sqrt(2 * big(pi))
    end
    c, a = sqrt(2 / big(pi)), big(44715) / 1000000
    t = tanh(c * (g + a * g^3))
    return (1 + t) / 2, (1 - t^2) * c * (1 + 3a * g^2) / 2
end

function exact_glu(dy::Columns, gate::Columns, up::Columns, activation)
    y, dgate, dup, terms = similar(gate), similar(gate), similar(gate), similar(gate)
    for i in eachindex(gate)
        g = gate[i]
        s, slope = sigmoid(g, activation)
        y[i], dup[i] = g * s * up[i], dy[i] * g * s
        dgate[i] = dy[i] * up[i] * (s + g * slope)
        terms[i] = abs(dy[i] * up[i]) * (s + abs(g * slope))
    end
    return y, dgate, dup, terms
end

@testset "every dtype and activation: $T $activation" for T in ELEMENTS,
        activation in (:silu, :gelu_tanh, :gelu_erf)
    gate, up, dy = encode.(T, 3 .* randn(RANDOM, 19, 3, 2)), normals(T, 19, 3, 2),
                   normals(T, 19, 3, 2)
    wanted = exact_glu(columns_of(dy), columns_of(gate), columns_of(up), activation)
    y = rmsnorm_glu(gate, up; activation=activation)
    @test typeof(y) === typeof(gate) && size(y) == size(gate)
    @test all_close(y, wanted[1])
    got = rmsnorm_glu_backward(dy, gate, up; activation=activation)
    @test all_close(got.dgate, wanted[2], wanted[4])
    @test all_close(got.dup, wanted[3])
end

@testset "packed halves, in place, one gradient alone" begin
    packed, dy = normals(Float32, 24, 5), normals(Float32, 12, 5)
    gate, up = view(packed, 1:12, :), view(packed, 13:24, :)
    y = rmsnorm_glu(copy(gate), copy(up))
    @test rmsnorm_glu(gate, up) == y
    gradients = rmsnorm_glu_backward(dy, gate, up)
    dgate, dup = similar(dy), similar(dy)
    @test rmsnorm_glu_backward!(dgate, nothing, dy, gate, up) == (gradients.dgate, nothing)
    @test rmsnorm_glu_backward!(nothing, dup, dy, gate, up) == (nothing, gradients.dup)
    both = similar(packed)
    rmsnorm_glu_backward!(view(both, 1:12, :), view(both, 13:24, :), dy, gate, up)
    @test both == vcat(gradients.dgate, gradients.dup)
    @test rmsnorm_glu!(gate, gate, up) === gate && packed[1:12, :] == y
    @test size(rmsnorm_glu(zeros(Float32, 8, 0), zeros(Float32, 8, 0))) == (8, 0)
end

@testset "bad input: $start" for (start, edit) in (
        ("y has size (9, 4), but with gate of (8, 4)", a -> merge(a, (y=fill(7f0, 9, 4),))),
        ("up has size (8,)", a -> merge(a, (up=ones(Float32, 8),))),
        ("gate must be an array", a -> merge(a, (gate=nothing,))),
        ("gate has elements of Int64", a -> merge(a, (gate=ones(Int64, 8, 4),))),
        ("up must be an array, not nothing", a -> merge(a, (up=nothing,))),
        ("y must be an array, not nothing", a -> merge(a, (y=nothing,))),
        ("y.data", a -> merge(a, (gate=view(a.memory, 3:10, :), y=view(a.memory, 1:8, :)))),
        ("activation = :relu", a -> merge(a, (options=(activation=:relu,),))))
    arguments = edit((y=fill(7f0, 8, 4), gate=ones(Float32, 8, 4), up=ones(Float32, 8, 4),
                      memory=fill(7f0, 10, 4), options=NamedTuple()))
    problem = error_of() do
        rmsnorm_glu!(arguments.y, arguments.gate, arguments.up; arguments.options...)
    end
    @test problem isa RMSNormError && startswith(problem.text, start)
    @test arguments.y === nothing || all(==(7f0), arguments.y)
end

@testset "bad input of backward" begin
    rows() = ones(Float32, 8, 4)
    for (arguments, start) in (
            ((rows(), rows(), ones(Float32, 8), rows(), rows()), "dy has size"),
            ((ones(Float32, 3), rows(), rows(), rows(), rows()), "dgate has size"),
            ((rows(), rows(), nothing, rows(), rows()), "dy must be an array"),
            ((nothing, nothing, rows(), rows(), rows()), "dgate"))
        problem = error_of(() -> rmsnorm_glu_backward!(arguments...))
        @test problem isa RMSNormError && startswith(problem.text, start)
    end
end
