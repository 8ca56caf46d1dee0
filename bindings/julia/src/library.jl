# Finds librmsnorm.so when this package is loaded, and refuses one that it does not fit. Looked for:
#   1. the file that the environment variable RMSNORM_LIBRARY names; if it is set, that one or none
#   2. librmsnorm.so in this package's folder
#   3. the system's, as the dynamic linker finds it (LD_LIBRARY_PATH, ldconfig)
# Where there is none the package loads all the same, and its first use says so.
using Libdl

const FUNCTIONS = Ref{ABI.Functions}()  # valid if PROBLEM is nothing
const PROBLEM = Ref{Union{Nothing, LibraryError}}(LibraryError("librmsnorm was not looked for"))
const LIBRARY_PATH = Ref("")

function load()
    PROBLEM[] = nothing
    try
        LIBRARY_PATH[], FUNCTIONS[] = find_library()
    catch problem
        problem isa LibraryError || rethrow()
        PROBLEM[] = problem
    end
    return nothing
end

functions() = (PROBLEM[] === nothing || throw(PROBLEM[]); FUNCTIONS[])

"""
    library()

What is loaded: its path, its version, and its build's description.
"""
function library()
    found = functions()
    number = ABI.version(found)
    version = VersionNumber(number ÷ 10000, number ÷ 100 % 100, number % 100)
    return (path = LIBRARY_PATH[], version = version,
            build_info = unsafe_string(ABI.build_info(found)))
end

# What is tried, in its order: (why, file).
function candidates()
    named = get(ENV, "RMSNORM_LIBRARY", "")
    isempty(named) || return [("RMSNORM_LIBRARY", named)]
    return [("the package's own", joinpath(dirname(@__DIR__), "librmsnorm.so")),
            ("the system's", "librmsnorm.so.$(ABI.ABI_VERSION)")]
end

one_line(text) = replace(strip(text), r"\s*\n\s*" => " ")

function find_library()
    tried = String[]
    for (why, path) in candidates()
        if !isempty(dirname(path)) && !isfile(path)
            push!(tried, "$why: $path: no such file")
            continue
        end
        handle = try
            Libdl.dlopen(path, Libdl.RTLD_NOW | Libdl.RTLD_LOCAL)
        catch problem
            push!(tried, "$why: $(one_line(sprint(showerror, problem)))")
            continue
        end
        return path, fitting(handle, path)
    end
    throw(LibraryError("librmsnorm was not found; tried " * join(tried, "; ")))
end

# The functions of a library of this package's ABI.
function fitting(handle::Ptr{Cvoid}, path::String)
    find(name) = Libdl.dlsym(handle, "rmsnorm_$name"; throw_error=false)
    abi_version = find("abi_version")
    abi_version === nothing &&
        throw(LibraryError("$path is not librmsnorm: it has no rmsnorm_abi_version"))
    abi = ccall(abi_version, Int32, ())
    abi == ABI.ABI_VERSION ||
        throw(LibraryError("$path has ABI $abi, but this package is for ABI $(ABI.ABI_VERSION)"))
    for name in fieldnames(ABI.Functions)
        find(name) === nothing &&
            throw(LibraryError("$path is older than this package: it has no rmsnorm_$name"))
    end
    functions = ABI.Functions(handle)
    check_structs(functions, path)
    return functions
end

# Asks the library about the size of each struct. What is otherwise wrong with these calls is found
# after the size.
function check_structs(functions::ABI.Functions, path::String)
    context, size = Ref(C_NULL), Ref(Csize_t(0))
    statuses = (
        ABI.ContextOptions => ABI.context_create(functions, Ref(ABI.ContextOptions()), context),
        ABI.DeviceInfo =>
            ABI.device_info(functions, ABI.DEVICE_CPU, 0, Ref(ABI.DeviceInfo())),
        ABI.ForwardParams =>
            ABI.forward_workspace_size(functions, context[], Ref(ABI.ForwardParams()), size),
        ABI.BackwardParams =>
            ABI.backward_workspace_size(functions, context[], Ref(ABI.BackwardParams()), size),
        ABI.GluForwardParams =>
            ABI.glu_forward_workspace_size(functions, context[], Ref(ABI.GluForwardParams()), size),
        ABI.GluBackwardParams =>
            ABI.glu_backward_workspace_size(functions, context[], Ref(ABI.GluBackwardParams()),
                                            size))
    ABI.context_destroy(functions, context[])
    for (struct_, status) in statuses
        status == ABI.ERROR_STRUCT_SIZE && throw(LibraryError(
            "$path does not know this package's $(nameof(struct_)) of $(sizeof(struct_)) bytes"))
    end
end
