# Gradients of rmsnorm, add_rmsnorm and rmsnorm_glu for what differentiates by ChainRules: Zygote, and others.
module RMSNormChainRulesCoreExt

using ChainRulesCore
using ChainRulesCore: AbstractZero, NoTangent, ProjectTo, unthunk
using RMSNorm

const Absent = Union{Nothing, AbstractZero}
const MaybeArray = Union{AbstractArray, Nothing}

# Of the keywords, those that the gradients need.
backward_options(; rounding=:once, rstd=nothing, options...) = options

# A gradient that the library can read: in memory, of x's elements.
readable(::Absent, x) = nothing
readable(gradient::StridedArray{T}, x::AbstractArray{T}) where {T} = gradient
readable(gradient, x) = copyto!(similar(x), gradient)

numbers_of_rows(x, ::Nothing) = similar(x, eltype(x) === Float64 ? Float64 : Float32,
                                        Base.tail(size(x)))
numbers_of_rows(x, given) = given

# What is handed to a function of the arguments: a gradient for each.
project(::Nothing, gradient) = NoTangent()
project(argument::AbstractArray, gradient) = ProjectTo(argument)(gradient)
project_all(arguments, gradients) = map(project, arguments, gradients[1:length(arguments)])

function ChainRulesCore.rrule(::typeof(rmsnorm), x::AbstractArray, vectors::MaybeArray...;
                              rstd=nothing, options...)
    numbers = numbers_of_rows(x, rstd)
    y = rmsnorm(x, vectors...; rstd=numbers, options...)
    function rmsnorm_pullback(gradient)
        dy = readable(unthunk(gradient), x)
        dy === nothing && return (NoTangent(), NoTangent(), map(_ -> NoTangent(), vectors)...)
        found = rmsnorm_backward(dy, x, vectors...; rstd=numbers, backward_options(; options...)...)
        return (NoTangent(), project_all((x, vectors...), values(found))...)
    end
    return y, rmsnorm_pullback
end

function ChainRulesCore.rrule(::typeof(add_rmsnorm), x::AbstractArray, residual::AbstractArray,
                              vectors::MaybeArray...; rstd=nothing, options...)
    numbers = numbers_of_rows(x, rstd)
    y, h = add_rmsnorm(x, residual, vectors...; rstd=numbers, options...)
    function add_rmsnorm_pullback(gradients)
        given = unthunk(gradients)
        given isa AbstractZero &&
            return (NoTangent(), NoTangent(), NoTangent(), map(_ -> NoTangent(), vectors)...)
        dy, dh = readable(unthunk(given[1]), h), readable(unthunk(given[2]), h)
        if dy === nothing  # h passes its gradient on
            dh === nothing && (dh = fill!(similar(h), zero(eltype(h))))
            return (NoTangent(), project(x, dh), project(residual, copy(dh)),
                    map(_ -> NoTangent(), vectors)...)
        end
        dresidual = similar(residual)
        found = rmsnorm_backward(dy, h, vectors...; rstd=numbers, dresidual_out=dh,
                                 dresidual=dresidual, backward_options(; options...)...)
        return (NoTangent(), project(x, found.dx), project(residual, dresidual),
                project_all(vectors, (found.dweight, found.dbias))...)
    end
    return (y, h), add_rmsnorm_pullback
end

function ChainRulesCore.rrule(::typeof(rmsnorm_glu), gate::AbstractArray, up::AbstractArray;
                              options...)
    function rmsnorm_glu_pullback(gradient)
        dy = readable(unthunk(gradient), gate)
        dy === nothing && return (NoTangent(), NoTangent(), NoTangent())
        found = rmsnorm_glu_backward(dy, gate, up; options...)
        return (NoTangent(), project(gate, found.dgate), project(up, found.dup))
    end
    return rmsnorm_glu(gate, up; options...), rmsnorm_glu_pullback
end

end
