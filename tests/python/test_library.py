"""Finding the library, and refusing one that does not fit."""
import os
import pathlib
import re
import subprocess
import sys

import pytest
import stub

import rmsnorm
from rmsnorm import _abi, _library

TRY = """
import rmsnorm
try:
    rmsnorm.devices()
except rmsnorm.LibraryError as error:
    print(error)
else:
    from rmsnorm import _library
    print("loaded", _library.load().path)
"""


def said(library, **more):
    """What a new process says that is told of this library."""
    environment = {**os.environ, **more}
    environment.pop("RMSNORM_LIBRARY", None)
    if library is not None:
        environment["RMSNORM_LIBRARY"] = str(library)
    return subprocess.run([sys.executable, "-c", TRY], env=environment, text=True, check=True,
                          stdout=subprocess.PIPE).stdout


def test_the_one_that_is_named_or_none():
    for missing in ("/nonexistent/librmsnorm.so", "nonexistent.so"):
        line = said(missing)
        assert line.startswith("librmsnorm was not found; tried RMSNORM_LIBRARY: "), line
        assert line.count("\n") == 1 and missing in line and "the system's" not in line


def test_a_file_that_is_no_library(tmp_path):
    (tmp_path / "librmsnorm.so").write_text("not a library")
    line = said(tmp_path / "librmsnorm.so")
    assert "librmsnorm was not found; tried" in line and line.count("\n") == 1


def test_all_places_are_listed(tmp_path):
    """From a copy of the package without a library of its own."""
    package = pathlib.Path(rmsnorm.__file__).parent
    copy = tmp_path / "rmsnorm"
    copy.mkdir()
    for file in package.glob("*.py"):
        (copy / file.name).write_text(file.read_text())
    line = said(None, PYTHONPATH=str(tmp_path))
    assert re.fullmatch(f"librmsnorm was not found; tried the package's own: {copy}/librmsnorm.so: "
                        f"no such file; the system's: {_library.SONAME}: .*\n", line), line

    found = _library.load().path
    (copy / "librmsnorm.so").symlink_to(found)
    assert said(None, PYTHONPATH=str(tmp_path)) == f"loaded {copy}/librmsnorm.so\n"
    (copy / "librmsnorm.so").rename(tmp_path / _library.SONAME)
    line = said(None, PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH=str(tmp_path))
    assert line == f"loaded {_library.SONAME}\n"


def test_another_abi(tmp_path):
    library = stub.build(tmp_path, {"rmsnorm_abi_version": "return 99;"})
    abi = _abi.ABI_VERSION
    assert said(library) == f"{library} has ABI 99, but this package is for ABI {abi}\n"


def test_no_abi(tmp_path):
    library = stub.build(tmp_path, {}, without=stub.LAYOUT["functions"])
    assert said(library) == f"{library} is not librmsnorm: it has no rmsnorm_abi_version\n"


def test_a_function_is_missing(tmp_path):
    library = stub.build(tmp_path, {}, without=["rmsnorm_backward_kernel_name"])
    line = said(library)
    assert line.startswith(f"{library} is older than this package: ")
    assert "rmsnorm_backward_kernel_name" in line and line.count("\n") == 1


@pytest.mark.parametrize("function, struct", [
    ("rmsnorm_context_create", _abi.ContextOptions), ("rmsnorm_device_info", _abi.DeviceInfo),
    ("rmsnorm_forward_workspace_size", _abi.ForwardParams),
    ("rmsnorm_backward_workspace_size", _abi.BackwardParams)])
def test_a_struct_of_another_size(tmp_path, function, struct):
    library = stub.build(tmp_path, {**stub.IDLE, function: "return 1009;"})
    assert said(library) == (f"{library} does not know this package's {struct.__name__} of "
                             f"{_abi.LAYOUT[struct][0]} bytes: text\n")


def test_the_real_one_is_asked_about_sizes():
    """So that the check above would notice: the library refuses sizes that it does not know."""
    functions = _library.load().functions
    assert _library._first_refused_struct(functions) is None
    for struct in (_abi.ContextOptions, _abi.DeviceInfo, _abi.ForwardParams, _abi.BackwardParams):
        original = struct.__init__

        def shorter(self, **fields):
            original(self, **fields)
            self.struct_size -= 8

        struct.__init__ = shorter
        try:
            assert struct.__name__ in _library._first_refused_struct(functions)
        finally:
            struct.__init__ = original


def test_versions_are_the_same():
    library = _library.load()
    assert library.version == rmsnorm.__version__
    assert f"version={rmsnorm.__version__}" in library.build_info


def test_devices():
    cpu = rmsnorm.devices()[0]
    assert cpu.type == "cpu" and cpu.supported and cpu.processors == os.cpu_count()
    assert cpu.isa in library_isas() and cpu.compute_capability == (0, 0)


def library_isas():
    return re.search(r"isa=(\S+)", _library.load().build_info)[1].split(",")
