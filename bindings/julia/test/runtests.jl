# The tests of RMSNorm.jl. The library is found as users' is (RMSNORM_LIBRARY names it). Prints 'N
# passed, N failed, N skipped', where one is a test set without others inside.
using RMSNorm
using Random
using Test
using RMSNorm: ABI, Context, PointerArray

include("support.jl")

function tally(set)
    inner = [tally(each) for each in set.results if each isa Test.AbstractTestSet]
    own = any(each -> each isa Union{Test.Fail, Test.Error}, set.results) ? [0, 1, 0] :
          any(each -> each isa Test.Broken, set.results) ? [0, 0, 1] : [isempty(inner), 0, 0]
    return reduce(+, inner; init=own)
end

@testset "RMSNorm" begin
    for name in ("forward", "backward", "glu", "arrays", "errors", "contexts", "library", "vectors",
                 "chain_rules", "examples")
        @testset "$name" begin
            include("test_$name.jl")
        end
    end
    passed, failed, skipped = tally(Test.get_testset())
    println("$passed passed, $failed failed, $skipped skipped")
end
