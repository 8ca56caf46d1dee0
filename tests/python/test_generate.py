"""bindings/generate.py, and that what it wrote is what the header and the library say."""
import ctypes
import shutil
import subprocess
import sys

import pytest
from stub import LAYOUT, ROOT

from rmsnorm import _abi

FILES = ("layout.json", "python/rmsnorm/_abi.py", "julia/src/abi.jl")


@pytest.fixture
def tree(tmp_path):
    """A copy of the header, the generator and what it wrote."""
    if not (shutil.which("clang-14") or shutil.which("clang")):
        pytest.skip("there is no clang")
    for name in ("include/rmsnorm.h", "bindings/generate.py", *(f"bindings/{f}" for f in FILES)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def generate(tree, *arguments):
    return subprocess.run([sys.executable, tree / "bindings/generate.py", *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def changed(tree, name, old, new):
    text = (tree / name).read_text()
    assert text.count(old) >= 1
    (tree / name).write_text(text.replace(old, new, 1))


def test_what_is_checked_in_is_up_to_date(tree):
    done = generate(tree, "--check")
    assert done.returncode == 0 and done.stdout == "", done.stdout


@pytest.mark.parametrize("old, new, said", [
    ("RMSNORM_DTYPE_BF16 = 0x0410", "RMSNORM_DTYPE_BF16 = 0x0411", "layout.json:"),
    ("#define RMSNORM_VERSION_PATCH 0", "#define RMSNORM_VERSION_PATCH 1", "RMSNORM_VERSION_PATCH"),
    ("  rmsnorm_tensor_t rstd;         /* optional */\n} rmsnorm_forward",
     "  rmsnorm_tensor_t rstd;         /* optional */\n  int64_t more;\n} rmsnorm_forward",
     "layout.json:"),
    ("  int64_t rows;         /* 0 or more", "  double rows;         /* 0 or more", "double"),
    ("rmsnorm_abi_version(void);", "rmsnorm_abi_version(int32_t of);", "layout.json:"),
    ("the rounding points of LlamaRMSNorm", "THE rounding points of LlamaRMSNorm", "_abi.py:"),
])
def test_a_change_of_the_header_is_noticed(tree, old, new, said):
    changed(tree, "include/rmsnorm.h", old, new)
    done = generate(tree, "--check")
    assert done.returncode == 1 and said in done.stdout, done.stdout
    assert "should have" in done.stdout
    before = [(tree / "bindings" / file).read_text() for file in FILES]
    assert generate(tree).returncode == 0
    assert generate(tree, "--check").returncode == 0
    assert [(tree / "bindings" / file).read_text() for file in FILES] != before


@pytest.mark.parametrize("file", FILES)
def test_a_change_of_a_generated_file_is_noticed(tree, file):
    changed(tree, f"bindings/{file}", "4002", "4003")
    done = generate(tree, "--check")
    assert done.returncode == 1 and f"bindings/{file}:" in done.stdout and "4003" in done.stdout
    (tree / "bindings" / file).unlink()
    done = generate(tree, "--check")
    assert done.returncode == 1 and f"bindings/{file} is missing" in done.stdout


def test_arguments(tree):
    assert generate(tree, "--help").returncode == 0
    assert generate(tree, "--nonsense").returncode == 2


def test_a_header_that_does_not_compile(tree):
    changed(tree, "include/rmsnorm.h", "int64_t rows;", "int64_t rows")
    done = generate(tree)
    assert done.returncode == 1 and "clang refused the header" in done.stdout


def test_comments_beyond_ascii(tree):
    """clang counts bytes."""
    changed(tree, "include/rmsnorm.h", "In short", "\u00c0 la carte: mean(h\u00b2) \u2264 1")
    changed(tree, "include/rmsnorm.h", "a scalar is out of its range", "a scalar is \u2265 it")
    done = generate(tree, "--check")
    assert done.returncode == 1 and "a scalar is \u2265 it" in done.stdout
    assert done.stdout.startswith("bindings/python/rmsnorm/_abi.py:"), done.stdout
    assert done.stdout.count("ERROR_VALUE = 1002") == 2


def test_an_enum_without_values(tree):
    changed(tree, "include/rmsnorm.h", "RMSNORM_DEVICE_CUDA = 2", "RMSNORM_DEVICE_CUDA")
    done = generate(tree)
    assert done.returncode == 1 and "RMSNORM_DEVICE_CUDA has no value of its own" in done.stdout


def test_a_type_that_the_bindings_do_not_know(tree):
    changed(tree, "include/rmsnorm.h", "typedef int32_t rmsnorm_device_t;",
            "typedef short rmsnorm_device_t;")
    done = generate(tree)
    assert done.returncode == 1 and "rmsnorm_device_t is a typedef of short" in done.stdout
    changed(tree, "include/rmsnorm.h", "typedef short rmsnorm_device_t;",
            "typedef int32_t rmsnorm_device_t;")
    changed(tree, "include/rmsnorm.h", "  int64_t cache_bytes;", "  float cache_bytes;")
    done = generate(tree)
    assert done.returncode == 1 and "cache_bytes is of type float" in done.stdout


def test_layout_is_what_ctypes_does():
    names = {"rmsnorm_tensor_t": _abi.Tensor, "rmsnorm_input_t": _abi.Input,
             "rmsnorm_device_info_t": _abi.DeviceInfo,
             "rmsnorm_context_options_t": _abi.ContextOptions,
             "rmsnorm_forward_params_t": _abi.ForwardParams,
             "rmsnorm_backward_params_t": _abi.BackwardParams,
             "rmsnorm_glu_forward_params_t": _abi.GluForwardParams,
             "rmsnorm_glu_backward_params_t": _abi.GluBackwardParams}
    assert set(names) == set(LAYOUT["structs"])
    for name, struct in names.items():
        assert ctypes.sizeof(struct) == LAYOUT["structs"][name]["size"]
        for field in LAYOUT["structs"][name]["fields"]:
            placed = getattr(struct, field["name"])
            assert (placed.offset, placed.size) == (field["offset"], field["size"])
    for name, value in LAYOUT["constants"].items():
        assert getattr(_abi, name[len("RMSNORM_"):]) == value


def test_layout_is_what_a_compiler_does(tmp_path):
    """Any C compiler, without the generator."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    lines = ["#include <rmsnorm.h>"]
    lines += [f'_Static_assert({name} == {value}, "");'
              for name, value in LAYOUT["constants"].items()]
    for name, struct in LAYOUT["structs"].items():
        lines.append(f'_Static_assert(sizeof({name}) == {struct["size"]}, "");')
        lines += [f'_Static_assert(offsetof({name}, {field["name"]}) == {field["offset"]}, "");'
                  for field in struct["fields"]]
    for name, function in LAYOUT["functions"].items():
        types = ", ".join(each["type"] for each in function["arguments"]) or "void"
        lines.append(f"{function['result']} (*test_{name})({types}) = {name};")
    file = tmp_path / "layout.c"
    file.write_text("\n".join(lines) + "\n")
    subprocess.run([compiler, "-std=c11", "-Werror", "-I", ROOT / "include", "-c", file, "-o",
                    tmp_path / "layout.o"], check=True)


def test_julia(tmp_path):
    """That Julia reads its file, and lays the structs out as C does."""
    julia = shutil.which("julia")
    if julia is None:
        pytest.skip("there is no Julia")
    from rmsnorm import _library
    program = f"""
include("{ROOT}/bindings/julia/src/abi.jl")
f = Functions(dlopen("{_library.load().path}"))
print(version(f), " ", unsafe_string(build_info(f)))
context = Ref{{Ptr{{Cvoid}}}}(C_NULL)
@assert context_create(f, ContextOptions(), context) == SUCCESS
size = Ref{{Csize_t}}(0)
@assert forward_workspace_size(f, context[], ForwardParams(), size) == ERROR_SHAPE
context_destroy(f, context[])
"""
    said = subprocess.run([julia, "--startup-file=no", "-e", program], check=True, text=True,
                          stdout=subprocess.PIPE).stdout
    assert said == f"{_library.load().functions.version()} {_library.load().build_info}"
