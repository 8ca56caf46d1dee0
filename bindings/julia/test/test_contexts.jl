@testset "threads of the caller, and of the library" begin
    x, weight = normals(Float32, 1024, 64), weights(Float32, 1024)
    dy = normals(Float32, 1024, 64)
    y, gradients = rmsnorm(x, weight), rmsnorm_backward(dy, x, weight)
    wrong = Threads.Atomic{Int}(0)
    for threads in (0, 3)
        RMSNorm.set_cpu_threads(threads)
        Threads.@threads for i in 1:64
            again = rmsnorm_backward(dy, x, weight)
            if rmsnorm(x, weight) != y || again.dx != gradients.dx ||
               again.dweight != gradients.dweight
                Threads.atomic_add!(wrong, 1)
            end
        end
    end
    RMSNorm.set_cpu_threads(0)
    @test wrong[] == 0
    large = normals(Float32, 1024, 4096)
    @test rmsnorm(large, weight; context=Context(; cpu_threads=2, keep_cached=true)) ==
          rmsnorm(large, weight)
end

@testset "each thread has errors of its own" begin
    wrong = Threads.Atomic{Int}(0)
    Threads.@threads for i in 1:200
        problem = error_of(() -> rmsnorm!(zeros(Float32, 3), ones(Float32, 3); eps=-i))
        problem isa RMSNormError && startswith(problem.text, "eps = -$i") ||
            Threads.atomic_add!(wrong, 1)
    end
    @test wrong[] == 0
end

@testset "options and their errors" begin
    @test sprint(show, Context()) == "RMSNorm.Context(the CPU)"
    for (call, start) in ((() -> Context(; cpu_threads=-1), "options.cpu_threads = -1"),
                          (() -> Context(; cpu_threads=2^40), "cpu_threads = 1099511627776"),
                          (() -> Context(; ordinal=3), "ordinal = 3"),
                          (() -> Context(:gpu), "device = :gpu"),
                          (() -> RMSNorm.set_cpu_threads(5000), "options.cpu_threads = 5000"))
        problem = error_of(call)
        @test problem isa RMSNormError && startswith(problem.text, start)
    end
    problem = error_of(() -> Context(:cuda))
    @test problem === nothing || problem isa RMSNormError && problem.code ÷ 1000 == 2
end

@testset "contexts are destroyed once, and live through calls" begin
    x = normals(Float32, 64, 4)
    y = rmsnorm(x)
    for i in 1:200
        @test rmsnorm(x; context=Context(; cpu_threads=2)) == y
        i % 50 == 0 && GC.gc()
    end
    context = Context()
    finalize(context)
    finalize(context)
    problem = error_of(() -> rmsnorm(x; context=context))
    @test problem isa RMSNormError && startswith(problem.text, "context is NULL")
end
