# The README's code and the example. They are in the project's source tree, and skipped elsewhere.

const EXAMPLE = joinpath(TREE, "examples", "julia", "rmsnorm.jl")

function run_example(folder)
    output = Pipe()
    command = `$JULIA -O1 --startup-file=no --project=$PACKAGE $EXAMPLE $folder`
    process = run(pipeline(command; stdout=output, stderr=output); wait=false)
    close(output.in)
    said = read(output, String)
    return success(process), said
end

if isfile(EXAMPLE)
    @testset "the example on real hidden states" begin
        passed, said = run_example(joinpath(TREE, "tests", "data"))
        @test passed && count(line -> startswith(line, "cpu "), split(said, '\n')) == 9
        passed || println(said)
    end

    @testset "the example refuses a missing folder" begin
        passed, said = run_example("/nonexistent")
        @test !passed && occursin("\nrmsnorm: /nonexistent/layer2_mlp.x.npy: no such file", said)
    end

    @testset "the README's code" begin
        text = read(joinpath(TREE, "README.md"), String)
        code = match(r"```julia\n(.*?)```"s, text)[1]
        @test include_string(Module(), code) isa Any
    end
else
    @testset "examples" begin
        @test_skip "examples/julia is not here"
    end
end
