@testset "every dtype and number of dimensions: $T $dims" for T in ELEMENTS,
        dims in (T === Float32 ? ((7,), (64, 5), (16, 2, 3, 2)) : ((16, 3, 2),))
    dy, x, dh = normals(T, dims...), normals(T, dims...), normals(T, dims...)
    weight, bias = weights(T, dims[1]), normals(T, dims[1])
    rstd = reshape(rstd_type(T).(exact_rstd(x, 1e-6)), dims[2:end])
    for given in (rstd, nothing)
        used = given === nothing ? exact_rstd(x, 1e-6) : exact.(vec(rstd))
        got = rmsnorm_backward(dy, x, weight, bias; rstd=given, dresidual_out=dh, weight_offset=1)
        dx, terms, products = exact_backward(columns_of(dy), columns_of(x), spread(weight, x) .+ 1,
                                             used, columns_of(dh))
        @test all_close(got.dx, dx, terms)
        @test all_close(got.dweight, over_rows(products), over_rows(abs.(products)))
        @test all_close(got.dbias, over_rows(columns_of(dy)), over_rows(abs.(columns_of(dy))))
        @test typeof(got.dx) === typeof(x) && size(got.dx) == dims
    end
end

@testset "a vector per group" begin
    dy, x, weight = normals(Float32, 24, 3, 5), normals(Float32, 24, 3, 5), weights(Float32, 24, 3)
    got = rmsnorm_backward(dy, x, weight)
    dx, terms, products = exact_backward(columns_of(dy), columns_of(x), spread(weight, x),
                                         exact_rstd(x, 1e-6), spread(0, x))
    @test all_close(got.dx, dx, terms)
    @test size(got.dweight) == (24, 3)
    @test all_close(got.dweight, over_rows(products, 3), over_rows(abs.(products), 3))
end

@testset "what is given is written" begin
    dy, x, weight = normals(Float16, 40, 6), normals(Float16, 40, 6), weights(Float16, 40)
    all_of_it = rmsnorm_backward(dy, x, weight)
    @test all_of_it.dbias === nothing
    @test rmsnorm_backward(dy, x).dweight === nothing
    dweight, dresidual = zeros(Float32, 40), zeros(Float32, 40, 6)
    @test rmsnorm_backward!(nothing, dy, x, weight; dweight=dweight) === nothing
    @test Float16.(dweight) ≈ all_of_it.dweight
    dx = rmsnorm_backward!(similar(x), dy, x, weight; dresidual=dresidual)
    @test dx == all_of_it.dx && Float16.(dresidual) == dx
    before = copy(dweight)
    rmsnorm_backward!(nothing, dy, x, weight; dweight=dweight, accumulate=true)
    @test dweight == 2 .* before
    dy_too = copy(dy)
    @test rmsnorm_backward!(dy_too, dy_too, x, weight) == dx
end

@testset "no rows" begin
    dy, weight = zeros(Float32, 8, 0), ones(Float32, 8)
    @test rmsnorm_backward(dy, dy, weight).dweight == zeros(8)
end

@testset "workspaces" begin
    dy, x, weight = normals(Float32, 64, 300), normals(Float32, 64, 300), weights(Float32, 64)
    wanted = rmsnorm_backward(dy, x, weight).dweight
    memory, dweight, asked = UInt8[], similar(weight), Int[]
    rmsnorm_backward!(nothing, dy, x, weight; dweight=dweight, workspace=memory)
    @test dweight == wanted && !isempty(memory)
    size_needed = length(memory)
    rmsnorm_backward!(nothing, dy[:, 1:2], x[:, 1:2], weight; dweight=dweight, workspace=memory)
    @test length(memory) == size_needed
    allocate(bytes) = (push!(asked, bytes); Vector{UInt8}(undef, bytes))
    rmsnorm_backward!(nothing, dy, x, weight; dweight=dweight, workspace=allocate)
    @test dweight == wanted && asked == [size_needed]
    too_small(bytes) = Vector{UInt8}(undef, bytes - 1)
    problem = error_of() do
        rmsnorm_backward!(nothing, dy, x, weight; dweight=dweight, workspace=too_small)
    end
    @test problem isa RMSNormError && problem.code == ABI.ERROR_WORKSPACE
    problem = error_of(() -> rmsnorm_backward!(nothing, dy, x; dweight=dweight, workspace=17))
    @test problem isa RMSNormError && startswith(problem.text, "workspace must be")
end

@testset "against differences" begin
    x, weight, dy = randn(RANDOM, 12, 3), 1 .+ randn(RANDOM, 12) ./ 4, randn(RANDOM, 12, 3)
    got = rmsnorm_backward(dy, x, weight; eps=1e-3)
    value(x, weight) = sum(dy .* rmsnorm(x, weight; eps=1e-3))
    for i in (1, 17, 36)
        step = zeros(12, 3)
        step[i] = 1e-6
        @test isapprox((value(x .+ step, weight) - value(x .- step, weight)) / 2e-6, got.dx[i];
                       atol=1e-7)
    end
    step = zeros(12)
    step[5] = 1e-6
    @test isapprox((value(x, weight .+ step) - value(x, weight .- step)) / 2e-6, got.dweight[5];
                   atol=1e-7)
end
