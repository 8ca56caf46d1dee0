"""
RMSNorm by librmsnorm: `rmsnorm`, `add_rmsnorm` (fused with a residual add) and `rmsnorm_backward`,
gated activations, `rmsnorm_glu` and `rmsnorm_glu_backward`; and the same with `!` into arrays of
yours.

An array's first dimension is what is normalised, so that hidden states are (hidden, tokens); more
dimensions may follow. Arrays are Float64, Float32, Float16, or bfloat16: `UInt16` that hold its
bits, or any 2-byte type named `BFloat16`. Nothing is copied: views work where their first dimension
is contiguous.
"""
module RMSNorm

export rmsnorm, rmsnorm!, add_rmsnorm, add_rmsnorm!, rmsnorm_backward, rmsnorm_backward!
export rmsnorm_glu, rmsnorm_glu!, rmsnorm_glu_backward, rmsnorm_glu_backward!
export RMSNormError

"The C interface; `include/rmsnorm.h` is its manual."
module ABI
include("abi.jl")
end

include("errors.jl")
include("library.jl")
include("context.jl")
include("arrays.jl")
include("layout.jl")
include("call.jl")
include("norm.jl")
include("glu.jl")

__init__() = load()

end
