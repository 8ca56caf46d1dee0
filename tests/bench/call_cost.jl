# What a call of RMSNorm.jl costs beside the C call that it makes: one row of 1024 fp32 on the CPU,
# nanoseconds, the medians of alternating batches. call_cost.cpp is the same for C++.
#   RMSNORM_LIBRARY=... julia --project=bindings/julia tests/bench/call_cost.jl
using RMSNorm
using RMSNorm: ABI

const COLS, BATCH, BATCHES = 1024, 200, 2001

function in_c(functions, context, x, weight, y)
    GC.@preserve x weight y context begin
        input(array, stride) = ABI.Input(pointer(array), stride, 0, ABI.DTYPE_F32, 0)
        params = ABI.ForwardParams(
            sizeof(ABI.ForwardParams), 1, 0, COLS, 1e-6, 0, 0, 0, input(x, COLS), ABI.Input(),
            input(weight, 0), ABI.Input(), ABI.Tensor(pointer(y), COLS, 0, ABI.DTYPE_F32, 0),
            ABI.Tensor(), ABI.Tensor())
        status = ABI.forward(functions, context.handle, Ref(params), C_NULL, 0, C_NULL)
    end
    status == ABI.SUCCESS || error("the C call failed")
end

function nanoseconds(call)
    start = time_ns()
    for _ in 1:BATCH
        call()
    end
    return (time_ns() - start) / BATCH
end

median(values) = sort(values)[length(values) ÷ 2 + 1]

function main()
    x, weight, y = fill(1.5f0, COLS, 1), fill(2f0, COLS), zeros(Float32, COLS, 1)
    functions, context = RMSNorm.functions(), RMSNorm.Context()
    c, julia = Float64[], Float64[]
    for _ in 1:BATCHES
        push!(c, nanoseconds(() -> in_c(functions, context, x, weight, y)))
        push!(julia, nanoseconds(() -> rmsnorm!(y, x, weight)))
    end
    println("C ", round(Int, median(c)), " ns, RMSNorm.jl ", round(Int, median(julia)), " ns")
end

main()
