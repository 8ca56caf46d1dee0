# Views of all kinds give the bits of a copy, and write nothing beside themselves.

same(y, wanted) = bits_of.(y) == bits_of.(wanted)

@testset "strided views: $name" for (name, take) in (
        ("columns left out", a -> view(a, 1:8, 1:2:9, :)),
        ("backwards", a -> view(a, 1:8, 10:-1:1, 4:-1:1)),
        ("one row", a -> view(a, 1:8, 3, 2)),
        ("one group", a -> view(a, 1:8, 3, :)),
        ("from an offset", a -> view(a, 3:12, 2:10, 2:3)),
        ("one column", a -> view(a, 5:5, :, :)),
        ("a vector of one in steps", a -> view(a, 1:5:5, :, :)),
        ("permuted", a -> PermutedDimsArray(view(a, 1:8, :, :), (1, 3, 2))),
        ("reshaped", a -> reshape(view(a, :, :, 2), 4, 3, 10)))
    whole, untouched = normals(Float32, 12, 10, 4), normals(Float32, 12, 10, 4)
    x = take(whole)
    weight = weights(Float32, size(x, 1))
    wanted, h_wanted = add_rmsnorm(copy(x), copy(x), weight)
    @test same(rmsnorm(x, weight), rmsnorm(copy(x), weight))
    out, before = copy(untouched), copy(untouched)
    y = take(out)
    rmsnorm!(y, x, weight)
    expected = copy(untouched)
    take(expected) .= rmsnorm(copy(x), weight)
    @test same(out, expected)
    y, h = take(copy(untouched)), take(copy(untouched))
    add_rmsnorm!(y, h, x, x, weight)
    @test same(y, wanted) && same(h, h_wanted)
    gradient = rmsnorm_backward!(take(copy(untouched)), x, y, weight)
    @test same(gradient, rmsnorm_backward(copy(x), copy(y), weight).dx)
end

@testset "heads of a packed projection, in place" begin
    packed = normals(UInt16, 16 * 6, 5)
    heads = reshape(packed, 16, 6, 5)
    weight = weights(UInt16, 16)
    expected = copy(heads)
    expected[:, 1:4, :] = rmsnorm(heads[:, 1:4, :], weight)
    queries = view(heads, :, 1:4, :)
    rmsnorm!(queries, queries, weight)
    @test packed == reshape(expected, :, 5)
end

@testset "dimensions that are one in memory" begin
    x = normals(Float32, 8, 3, 4, 5)
    weight = weights(Float32, 8)
    @test same(rmsnorm(x, weight), reshape(rmsnorm(reshape(x, 8, :), weight), size(x)))
    gap = view(normals(Float32, 8, 3, 4, 7), :, :, :, 1:2:7)
    @test same(rmsnorm(gap, weight), rmsnorm(copy(gap), weight))
    ones_between = view(normals(Float32, 8, 1, 6, 1, 5), :, 1:1, 1:4, :, 1:2:5)
    @test same(rmsnorm(ones_between, weight), rmsnorm(copy(ones_between), weight))
    @test size(rmsnorm(zeros(Float32, 8, 3, 0, 5), weight)) == (8, 3, 0, 5)
end

@testset "rstd and vectors may be views" begin
    x, weight = normals(Float32, 8, 6), weights(Float32, 24)
    numbers = zeros(Float32, 18)
    rmsnorm!(similar(x), x, view(weight, 9:16); rstd=view(numbers, 2:3:17))
    wanted = zeros(Float32, 6)
    @test same(rmsnorm(x, weight[9:16]; rstd=wanted), rmsnorm(x, view(weight, 9:16)))
    @test numbers[2:3:17] == wanted && all(iszero, numbers[1:3:18]) && all(iszero, numbers[3:3:18])
    one = fill(0f0)
    rmsnorm(x[:, 1]; rstd=one)
    rmsnorm(x; rstd=wanted)
    @test one[] == wanted[1]
end

@testset "reinterpreted and typed bfloat16" begin
    bits, weight = normals(UInt16, 32, 3), weights(UInt16, 32)
    y = rmsnorm(bits, weight)
    @test reinterpret(UInt16, rmsnorm(Array(reinterpret(BFloat16, bits)),
                                      reinterpret(BFloat16, weight))) == y
    @test reinterpret(UInt16, rmsnorm!(reinterpret(BFloat16, similar(bits)),
                                       reinterpret(BFloat16, bits), weight)) == y
end

@testset "bare pointers" begin
    x, weight, context = normals(Float32, 8, 5), weights(Float32, 8), Context()
    y, one = zeros(Float32, 8, 5), zeros(Float32, 8, 3)
    wrap(array) = PointerArray{eltype(array)}(pointer(array), size(array); keep=array)
    @test rmsnorm!(wrap(y), wrap(x), wrap(weight); context=context) isa PointerArray
    @test same(y, rmsnorm(x, weight))
    # A stride of zero, and an address as a number.
    repeated = PointerArray{Float32}(UInt(pointer(x)), (8, 3), (1, 0); keep=x)
    rmsnorm!(one, repeated, weight; context=context)
    @test same(one, repeat(y[:, 1], 1, 3))
    problem = error_of(() -> rmsnorm!(y, wrap(x), weight))
    @test problem isa RMSNormError && startswith(problem.text, "context must be given")
    problem = error_of(() -> rmsnorm(wrap(x), weight; context=context))
    @test problem isa RMSNormError && startswith(problem.text, "x must be an array for")
end
