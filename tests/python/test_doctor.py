"""python -m rmsnorm"""
import os
import subprocess
import sys

import numpy as np
import pytest
import stub

import rmsnorm
from rmsnorm import _abi, _library


def doctor(*arguments, library=None):
    library = library or _library.load().path
    return subprocess.run([sys.executable, "-m", "rmsnorm", *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "RMSNORM_LIBRARY": str(library)})


def test_all_is_well():
    done = doctor()
    assert done.returncode == 0 and done.stderr == "", done
    lines = done.stdout.splitlines()
    abi = _abi.ABI_VERSION
    assert lines[0].startswith(f"rmsnorm {rmsnorm.__version__} for ABI {abi}, in ")
    assert f"  numpy: {np.__version__}" in lines
    assert f"library {rmsnorm.__version__} with ABI {abi}: {_library.load().path}" in lines
    assert f"  {_library.load().build_info}" in lines
    for device in rmsnorm.devices():
        (line,) = [line for line in lines if line.startswith(f"{device.type}:{device.ordinal} ")]
        assert device.isa in line and " ulp of at most " in line
    if len(rmsnorm.devices()) == 1:
        assert any(line.startswith("cuda: ") for line in lines), lines


def test_no_library():
    done = doctor(library="/nonexistent/librmsnorm.so")
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("FAILED librmsnorm was not found; tried ")


@pytest.mark.parametrize("forward, words", [
    ("return 0;", "the error is beyond its bound"), ("return 5001;", "text"),
    ("((float *)params->y.data)[3] = 0.0f / 0.0f; return 0;", "the error is beyond its bound")])
def test_wrong_results(tmp_path, forward, words):
    library = stub.build(tmp_path, {**stub.IDLE, "rmsnorm_forward": forward})
    done = doctor(library=library)
    assert done.returncode == 1 and done.stderr == "", done
    assert f"FAILED cpu:0: {words}" in done.stdout


def test_arguments():
    done = doctor("--help")
    assert done.returncode == 0 and "Exit code 0" in done.stdout and done.stderr == ""
    done = doctor("--nonsense")
    assert done.returncode == 2 and done.stdout == "" and "Exit code 0" in done.stderr
