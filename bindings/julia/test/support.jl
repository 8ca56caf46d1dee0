# The operations once more in BigFloat, and errors in ulps: what results are judged by.

const PACKAGE = dirname(@__DIR__)
const TREE = dirname(dirname(PACKAGE))  # the project's, where the package stands in it
const JULIA = joinpath(Sys.BINDIR, Base.julia_exename())

setprecision(BigFloat, 320)  # sums of squares of Float64 stay exact enough

"A 2-byte type by the name under which packages have theirs."
primitive type BFloat16 16 end

const ELEMENTS = (Float64, Float32, Float16, UInt16, BFloat16)

exact(value::Base.IEEEFloat) = BigFloat(value)
exact(bits::UInt16) = BigFloat(reinterpret(Float32, UInt32(bits) << 16))
exact(value::BFloat16) = exact(reinterpret(UInt16, value))

"A Float64 rounded to an element type, ties to even."
encode(::Type{T}, value::Float64) where {T <: Base.IEEEFloat} = T(value)
function encode(::Type{UInt16}, value::Float64)
    bits = reinterpret(UInt32, Float32(value))
    return UInt16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)
end
encode(::Type{BFloat16}, value::Float64) = reinterpret(BFloat16, encode(UInt16, value))

bits_of(value::Union{Float64, BFloat16, Float16, Float32}) =
    reinterpret((UInt16, UInt32, UInt64)[Int(log2(sizeof(value)))], value)
bits_of(value::UInt16) = value

digits_of(::Type{Float64}) = (53, -1074)
digits_of(::Type{Float32}) = (24, -149)
digits_of(::Type{Float16}) = (11, -24)
digits_of(::Type{<:Union{UInt16, BFloat16}}) = (8, -133)

"The distance between the neighbours of a value in an element type."
function ulp(value::BigFloat, ::Type{T}) where {T}
    digits, smallest = digits_of(T)
    place = iszero(value) ? smallest : max(exponent(value) + 1 - digits, smallest)
    return BigFloat(2)^place
end

"Whether a result is within `ulps` of its exact value and a share of 2^-40 of the terms it sums."
function close_enough(got, wanted::BigFloat, terms::BigFloat=BigFloat(0); ulps=bound(typeof(got)))
    error = abs(exact(got) - wanted)
    return error <= ulps * ulp(wanted, typeof(got)) + terms * BigFloat(2)^-40
end
bound(::Type{Float64}) = 2.0
bound(::Type) = 0.501

all_close(got, wanted, terms=zero(wanted)) = length(got) == length(wanted) == length(terms) &&
    all(close_enough(got[i], wanted[i], terms[i]) for i in eachindex(got))

const RANDOM = MersenneTwister(20240607)

"Elements about N(0, 1), or about 1 + N(0, 1) / 4."
normals(T, size...) = encode.(T, randn(RANDOM, size...))
weights(T, size...) = encode.(T, 1 .+ randn(RANDOM, size...) ./ 4)
rstd_type(T) = T === Float64 ? Float64 : Float32

# The reference works on matrices of columns alone, whatever the arrays' dimensions.
const Columns = Matrix{BigFloat}
columns_of(array)::Columns = reshape(map(exact, vec(collect(array))), size(array, 1), :)

"A vector for every column of x: weight is (cols,) or (cols, groups), or a number."
spread(weight::Number, x)::Columns = fill(BigFloat(weight), size(x, 1), length(x) ÷ size(x, 1))
function spread(weight, x)::Columns
    columns = columns_of(weight)
    return repeat(columns, 1, length(x) ÷ length(columns))
end

function exact_rstd(h::Columns, eps)
    return BigFloat[1 / sqrt(sum(abs2, h[:, i]) / size(h, 1) + BigFloat(eps)) for i in 1:size(h, 2)]
end
exact_rstd(h, eps) = exact_rstd(columns_of(h), eps)

"y of forward without a bias."
exact_y(h::Columns, weight::Columns, eps, weight_offset)::Columns =
    h .* transpose(exact_rstd(h, eps)) .* (weight .+ BigFloat(weight_offset))
exact_y(h, weight; eps=1e-6, weight_offset=0) =
    exact_y(columns_of(h), spread(weight, h), eps, weight_offset)

"dx, the magnitude of its terms, and dweight's terms (to be summed)."
function exact_backward(dy::Columns, x::Columns, weight::Columns, rstd::Vector{BigFloat},
                        dresidual_out::Columns)
    dx, terms, products = similar(x), similar(x), similar(x)
    for i in 1:size(x, 2)
        xhat, wdy = x[:, i] .* rstd[i], weight[:, i] .* dy[:, i]
        mean = sum(wdy .* xhat) / size(x, 1)
        magnitude = sum(abs.(wdy .* xhat)) / size(x, 1)
        dx[:, i] = rstd[i] .* (wdy .- xhat .* mean) .+ dresidual_out[:, i]
        terms[:, i] = rstd[i] .* (abs.(wdy) .+ abs.(xhat) .* magnitude) .+ abs.(dresidual_out[:, i])
        products[:, i] = dy[:, i] .* xhat
    end
    return dx, terms, products
end

"Sums over what shares a vector: the columns, those of every `groups`-th if there are groups."
over_rows(values::Columns, groups=1)::Columns =
    reduce(hcat, [sum(values[:, group:groups:end], dims=2) for group in 1:groups])

"The error of a call, or a test failure."
function error_of(call)
    try
        call()
    catch problem
        return problem
    end
    return nothing
end
