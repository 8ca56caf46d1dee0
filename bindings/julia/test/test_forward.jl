@testset "every dtype and number of dimensions: $T $dims" for T in ELEMENTS,
        dims in (T === Float32 ? ((7,), (64, 5), (67, 3, 4), (16, 2, 3, 2)) : ((67, 3, 4),))
    x, weight, bias = normals(T, dims...), weights(T, dims[1]), normals(T, dims[1])
    rstd = zeros(rstd_type(T), dims[2:end]...)
    y = rmsnorm(x, weight; eps=1e-5, rstd=rstd)
    @test typeof(y) === typeof(x) && size(y) == dims
    @test all_close(y, exact_y(x, weight; eps=1e-5))
    @test all_close(vec(rstd), exact_rstd(x, 1e-5))
    shifted = rmsnorm(x, weight, bias; weight_offset=1)
    product = exact_y(x, weight; weight_offset=1)
    @test all_close(shifted, product .+ spread(bias, x), abs.(product) ./ 256)  # 2^-48 of it
    @test all_close(rmsnorm(x), exact_y(x, 1))
end

@testset "a vector per group: $T" for T in (Float32, UInt16)
    x, weight, bias = normals(T, 24, 3, 5), weights(T, 24, 3), normals(T, 24, 3)
    @test all_close(rmsnorm(x, weight), exact_y(x, weight))
    product = exact_y(x, weight)
    @test all_close(rmsnorm(x, weight, bias), product .+ spread(bias, x), abs.(product) ./ 256)
    @test rmsnorm(x, weight, bias[:, 1])[:, 1, :] == rmsnorm(x[:, 1, :], weight[:, 1], bias[:, 1])
    deep = normals(T, 24, 3, 5, 2)
    @test all_close(rmsnorm(deep, weight), exact_y(deep, weight))
end

@testset "fused add: $T" for T in ELEMENTS
    x, residual, weight = normals(T, 40, 6), normals(T, 40, 6), weights(T, 40)
    y, h = add_rmsnorm(x, residual, weight)
    @test bits_of.(h) == bits_of.(encode.(T, Float64.(exact.(x) .+ exact.(residual))))
    @test all_close(y, exact_y(h, weight))
    without, none = add_rmsnorm!(similar(x), nothing, x, residual, weight)
    @test none === nothing && bits_of.(without) == bits_of.(y)
    x_too, residual_too = copy(x), copy(residual)
    @test add_rmsnorm!(x_too, residual_too, x_too, residual_too, weight) === (x_too, residual_too)
    @test bits_of.(x_too) == bits_of.(y) && bits_of.(residual_too) == bits_of.(h)
end

@testset "each array its own dtype" begin
    x, residual, weight = normals(UInt16, 33, 4), normals(Float32, 33, 4), weights(Float16, 33)
    y, h = add_rmsnorm!(zeros(Float32, 33, 4), zeros(Float32, 33, 4), x, residual, weight)
    @test exact.(h) == BigFloat.(Float32.(exact.(x) .+ exact.(residual)))
    @test all_close(y, exact_y(h, weight))
end

@testset "in place" begin
    x, weight = normals(Float32, 50, 3), weights(Float32, 50)
    y = rmsnorm(x, weight)
    @test rmsnorm!(x, x, weight) === x
    @test x == y
end

@testset "rounding as Llama" begin
    x, weight = normals(UInt16, 64, 8), weights(UInt16, 64)
    once, llama = rmsnorm(x, weight), rmsnorm(x, weight; rounding=:llama)
    t = rmsnorm(x; rounding=:llama)
    @test once != llama
    @test all_close(t, exact_y(x, 1))
    @test all_close(llama, columns_of(t) .* spread(weight, x))
end

@testset "no eps, no rows, zeros" begin
    @test rmsnorm(Float32[3, 4]; eps=0) ≈ [3, 4] ./ sqrt(12.5)
    @test size(rmsnorm(zeros(Float32, 8, 0), ones(Float32, 8))) == (8, 0)
    @test size(rmsnorm(zeros(Float32, 8, 3, 0), ones(Float32, 8, 3))) == (8, 3, 0)
    @test all(iszero, rmsnorm(zeros(Float32, 8, 2)))
    @test all(isnan, rmsnorm(zeros(Float32, 8, 2); eps=0))
end

@testset "types are inferred" begin
    x, weight = normals(Float32, 64, 2), weights(Float32, 64)
    y = similar(x)
    @test (@inferred rmsnorm!(y, x, weight)) === y
    @test size(@inferred rmsnorm(x, weight)) == size(x)
    @test length(@inferred add_rmsnorm(x, y, weight)) == 2
    @test (@inferred rmsnorm_backward(y, x, weight)).dbias === nothing
end

@testset "a call allocates nothing" begin
    code = """
        using RMSNorm
        allocated(y, x, weight) = @allocated rmsnorm!(y, x, weight; eps=1e-5)
        x, weight = ones(Float32, 64, 2), ones(Float32, 64)
        allocated(x, x, weight)
        print(allocated(x, x, weight))"""
    @test read(`$JULIA --startup-file=no --project=$PACKAGE -O2 -e $code`, String) == "0"
end
