# The rules for ChainRules: with the package where it is installed, else with a stand-in of what
# they use of it, in which they run as they are but no differentiator does.

const STAND_IN = """
module ChainRulesCore
abstract type AbstractZero end
struct NoTangent <: AbstractZero end
struct ZeroTangent <: AbstractZero end
struct Thunk{F}
    f::F
end
unthunk(x) = x
unthunk(x::Thunk) = x.f()
function rrule end
struct ProjectTo{A}
    like::A
end
(project::ProjectTo)(gradient) =
    reshape(convert(Array{eltype(project.like)}, gradient), size(project.like))
end
"""

if Base.find_package("ChainRulesCore") === nothing
    let folder = mktempdir()
        write(joinpath(folder, "ChainRulesCore.jl"), STAND_IN)
        push!(LOAD_PATH, folder)
    end
end
using ChainRulesCore
using ChainRulesCore: NoTangent, ZeroTangent, Thunk, rrule
isdefined(Base, :get_extension) &&
    Base.get_extension(RMSNorm, :RMSNormChainRulesCoreExt) !== nothing ||
    include(joinpath(PACKAGE, "ext", "RMSNormChainRulesCoreExt.jl"))

@testset "rmsnorm: $(length(vectors)) vectors" for vectors in (
        (), (weights(Float32, 16),), (weights(Float32, 16), normals(Float32, 16)),
        (nothing, normals(Float32, 16)))
    x, dy = normals(Float32, 16, 5), normals(Float32, 16, 5)
    y, pullback = rrule(rmsnorm, x, vectors...; eps=1e-5)
    @test y == rmsnorm(x, vectors...; eps=1e-5)
    wanted = values(rmsnorm_backward(dy, x, vectors...; eps=1e-5))
    for gradient in (dy, Thunk(() -> dy), view(dy, :, 1:5), BigFloat.(dy))
        got = pullback(gradient)
        @test length(got) == 2 + length(vectors) && got[1] === NoTangent()
        for (gradient, exactly) in zip(got[2:end], wanted)
            @test exactly === nothing ? gradient === NoTangent() :
                  isapprox(gradient, exactly; rtol=1e-5)
        end
    end
    @test all(==(NoTangent()), pullback(ZeroTangent()))
end

@testset "add_rmsnorm" begin
    x, residual, weight = normals(Float32, 16, 5), normals(Float16, 16, 5), weights(Float32, 16)
    dy, dh = normals(Float32, 16, 5), normals(Float16, 16, 5)
    (y, h), pullback = rrule(add_rmsnorm, x, residual, weight; weight_offset=1, rounding=:llama)
    @test (y, h) == add_rmsnorm(x, residual, weight; weight_offset=1, rounding=:llama)
    _, dx, dresidual, dweight = pullback((dy, dh))
    wanted = rmsnorm_backward(Float16.(dy), h, weight; weight_offset=1, dresidual_out=dh)
    @test isapprox(dx, wanted.dx; rtol=1e-2) && eltype(dx) === Float32
    @test isapprox(dresidual, wanted.dx; rtol=1e-2) && eltype(dresidual) === Float16
    @test isapprox(dweight, wanted.dweight; rtol=1e-2)
    @test pullback((ZeroTangent(), dh))[2:4] == (dh, dh, NoTangent())
    @test isapprox(pullback((dy, ZeroTangent()))[2],
                   rmsnorm_backward(Float16.(dy), h, weight; weight_offset=1).dx; rtol=1e-2)
    @test all(==(NoTangent()), pullback(ZeroTangent()))
    @test all(iszero, pullback((ZeroTangent(), ZeroTangent()))[2])
end

@testset "against differences" begin
    x, residual, weight = randn(RANDOM, 8, 2), randn(RANDOM, 8, 2), 1 .+ randn(RANDOM, 8) ./ 4
    dy, dh = randn(RANDOM, 8, 2), randn(RANDOM, 8, 2)
    value(x, residual, weight) = let (y, h) = add_rmsnorm(x, residual, weight)
        sum(dy .* y) + sum(dh .* h)
    end
    gradients = rrule(add_rmsnorm, x, residual, weight)[2]((dy, dh))
    for (place, gradient) in enumerate(gradients[2:end]), i in (1, 6)
        up, down = [x, residual, weight], [x, residual, weight]
        step = zeros(size(gradient))
        step[i] = 1e-6
        up[place], down[place] = up[place] .+ step, down[place] .- step
        @test isapprox((value(up...) - value(down...)) / 2e-6, gradient[i]; atol=1e-7)
    end
end

@testset "rmsnorm_glu" begin
    gate, up, dy = normals(Float32, 16, 5), normals(Float32, 16, 5), normals(Float32, 16, 5)
    y, pullback = rrule(rmsnorm_glu, gate, up; activation=:gelu_erf)
    @test y == rmsnorm_glu(gate, up; activation=:gelu_erf)
    @test pullback(Thunk(() -> dy)) ==
          (NoTangent(), values(rmsnorm_glu_backward(dy, gate, up; activation=:gelu_erf))...)
    @test all(==(NoTangent()), pullback(ZeroTangent()))
end
