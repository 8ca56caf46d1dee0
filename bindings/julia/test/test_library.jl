# Finding the library, and refusing one that does not fit: in processes of their own.

const FOUND = RMSNorm.library().path

"What a new process says that is told of this library, or of none."
function said(library, more...; package=PACKAGE)
    environment = Dict{String, String}(ENV)
    delete!(environment, "RMSNORM_LIBRARY")
    library === nothing || (environment["RMSNORM_LIBRARY"] = library)
    environment["JULIA_PROJECT"] = package
    for (name, value) in more
        environment[name] = string(value, haskey(environment, name) ? ":$(environment[name])" : "")
    end
    code = """
        using RMSNorm
        try
            rmsnorm(ones(Float32, 4))
            println("loaded ", RMSNorm.library().path)
        catch problem
            showerror(stdout, problem)
        end"""
    return readchomp(setenv(`$JULIA --startup-file=no --compile=min -e $code`, environment))
end

"A library with all functions, which return 0; those in bodies do as told."
function stub(folder, bodies; without=())
    names = ["rmsnorm_$name" for name in fieldnames(ABI.Functions)]
    source = join("int $name(void) { $(get(bodies, name, "return 0;")) }\n"
                  for name in names if !(name in without))
    path = joinpath(folder, "librmsnorm.so")
    write(joinpath(folder, "stub.c"), source)
    clean = filter(pair -> pair[1] != "LD_LIBRARY_PATH", Dict(ENV))  # that is Julia's, not cc's
    run(setenv(`cc -shared -fPIC -o $path $(joinpath(folder, "stub.c"))`, clean))
    return path
end

@testset "the one that is named or none" begin
    for missing_ in ("/nonexistent/librmsnorm.so", "nonexistent.so")
        line = said(missing_)
        @test startswith(line, "RMSNorm.LibraryError: librmsnorm was not found; tried " *
                               "RMSNORM_LIBRARY: ")
        @test occursin(missing_, line) && !occursin("the system's", line) && !occursin('\n', line)
    end
    @test said(FOUND) == "loaded $FOUND"
end

@testset "a file that is no library" begin
    mktempdir() do folder
        path = joinpath(folder, "librmsnorm.so")
        write(path, "not a library")
        line = said(path)
        @test occursin("librmsnorm was not found; tried", line) && !occursin('\n', line)
    end
end

@testset "all places are listed" begin
    mktempdir() do folder
        for name in ("Project.toml", "src")
            cp(joinpath(PACKAGE, name), joinpath(folder, name))
        end
        own = joinpath(folder, "librmsnorm.so")
        soname = "librmsnorm.so.$(ABI.ABI_VERSION)"
        # The system may have one.
        if RMSNorm.Libdl.dlopen(soname; throw_error=false) === nothing
            line = said(nothing; package=folder)
            @test occursin("tried the package's own: $own: no such file; the system's: ", line)
            @test occursin(soname, line) && !occursin('\n', line)
        end
        symlink(FOUND, own)
        @test said(nothing; package=folder) == "loaded $own"
        mv(own, joinpath(folder, soname))
        @test said(nothing, "LD_LIBRARY_PATH" => folder; package=folder) == "loaded $soname"
    end
end

@testset "one that does not fit" begin
    Sys.which("cc") === nothing && return @test_skip "there is no C compiler"
    abi = Dict("rmsnorm_abi_version" => "return $(ABI.ABI_VERSION);")
    for (bodies, without, text) in (
            (Dict("rmsnorm_abi_version" => "return 99;"), (),
             "has ABI 99, but this package is for ABI $(ABI.ABI_VERSION)"),
            (Dict(), ("rmsnorm_abi_version",), "is not librmsnorm: it has no rmsnorm_abi_version"),
            (abi, ("rmsnorm_backward_kernel_name",),
             "is older than this package: it has no rmsnorm_backward_kernel_name"),
            ([merge(abi, Dict(function_ => "return 1009;")), (),
              "does not know this package's $struct_ of $(sizeof(getfield(ABI, struct_))) bytes"]
             for (function_, struct_) in (("rmsnorm_context_create", :ContextOptions),
                                          ("rmsnorm_device_info", :DeviceInfo),
                                          ("rmsnorm_forward_workspace_size", :ForwardParams),
                                          ("rmsnorm_backward_workspace_size", :BackwardParams),
                                          ("rmsnorm_glu_forward_workspace_size", :GluForwardParams),
                                          ("rmsnorm_glu_backward_workspace_size",
                                           :GluBackwardParams)))...)
        mktempdir() do folder
            library = stub(folder, bodies; without=without)
            problem = error_of(() -> RMSNorm.fitting(RMSNorm.Libdl.dlopen(library), library))
            @test problem isa RMSNorm.LibraryError && problem.text == "$library $text"
        end
    end
end

@testset "the real one is asked about sizes" begin
    functions = RMSNorm.functions()
    @test RMSNorm.check_structs(functions, FOUND) === nothing
    shorter = Ref(ABI.ForwardParams())
    size = Ref{Csize_t}(0)
    unsafe_store!(Ptr{Csize_t}(Base.unsafe_convert(Ptr{ABI.ForwardParams}, shorter)),
                  sizeof(ABI.ForwardParams) - 8)
    @test ABI.forward_workspace_size(functions, C_NULL, shorter, size) in
          (ABI.ERROR_STRUCT_SIZE, ABI.ERROR_NULL)
end

@testset "versions are the same" begin
    project = read(joinpath(PACKAGE, "Project.toml"), String)
    @test VersionNumber(match(r"^version = \"(.*)\"$"m, project)[1]) == RMSNorm.library().version
    @test occursin("version=$(RMSNorm.library().version)", RMSNorm.library().build_info)
end
