# What goes wrong, as exceptions.

"""
A call was refused, or failed. `code` is the library's (an `ERROR_*` constant of `RMSNorm.ABI`):
1xxx an argument breaks a rule, and nothing has been written; 2xxx not supported or not available
here; 3xxx out of memory; 4xxx CUDA failed; 5xxx a bug. `text` names the argument and the rule.
"""
struct RMSNormError <: Exception
    code::Int32
    text::String
end

Base.showerror(io::IO, error::RMSNormError) =
    print(io, "RMSNormError: ", error.text, " (", error.code, ")")

"No librmsnorm.so could be loaded, or the one that was found does not fit this package."
struct LibraryError <: Exception
    text::String
end

Base.showerror(io::IO, error::LibraryError) = print(io, "RMSNorm.LibraryError: ", error.text)

# Throws for a status other than success, with the text of this thread's latest failure.
check(status::Int32) = status == ABI.SUCCESS ? nothing : throw(failure(FUNCTIONS[], status))

@noinline function failure(functions::ABI.Functions, status::Int32)
    text = Vector{UInt8}(undef, ABI.last_error(functions, C_NULL, 0))
    GC.@preserve text begin
        ABI.last_error(functions, pointer(text), length(text))
        return RMSNormError(status, unsafe_string(pointer(text)))
    end
end

# Not compiled anew for every kind of argument.
@noinline refuse(code::Int32, @nospecialize(parts...)) = throw(RMSNormError(code, string(parts...)))
