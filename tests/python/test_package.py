"""The wheel that is installed, and the source distribution."""
import os
import re
import subprocess
import sys
import tarfile
from importlib import metadata

import pytest
from stub import ROOT

import rmsnorm
from rmsnorm import _abi, _context


@pytest.fixture
def installed():
    try:
        return metadata.distribution("rmsnorm")
    except metadata.PackageNotFoundError:
        pytest.skip("rmsnorm is not installed: these tests run on its source")


def test_the_wheel(installed):
    assert installed.version == rmsnorm.__version__
    files = {str(file) for file in installed.files if "__pycache__" not in str(file)}
    assert {"rmsnorm/librmsnorm.so", "rmsnorm/py.typed", "rmsnorm/_abi.py"} <= files
    if sys.version_info >= (3, 10):  # of the Python that built it, as tests/python/run does
        assert "rmsnorm/rmsnorm_torch_host.abi3.so" in files
    assert all(re.match(r"rmsnorm/|rmsnorm-[\d.]+\.dist-info/", file) for file in files), files
    wheel = installed.read_text("WHEEL")
    assert re.search(r"^Tag: py3-none-(many)?linux_\w+$", wheel, re.M), wheel
    assert not installed.requires, "it needs no other package"
    assert installed.read_text("METADATA").count("\nLicense-Expression: Apache-2.0\n") == 1


def test_its_own_library_is_used(installed):
    folder = installed.locate_file("rmsnorm")
    program = "from rmsnorm import _library; print(_library.load().path)"
    environment = {name: value for name, value in os.environ.items() if name != "RMSNORM_LIBRARY"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, text=True, check=True,
                          stdout=subprocess.PIPE).stdout.strip()
    assert said == str(folder / "librmsnorm.so")


def test_the_source_distribution(tmp_path):
    """It has all that its build needs; with RMSNORM_TEST_FULL=1 it is built."""
    wanted = re.search(r'"scikit-build-core==([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    pytest.importorskip("scikit_build_core", minversion=wanted)
    build = pytest.importorskip("scikit_build_core.build")
    here = os.getcwd()
    try:
        os.chdir(ROOT)
        name = build.build_sdist(str(tmp_path))
    finally:
        os.chdir(here)
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    source = tmp_path / name[:-len(".tar.gz")]
    assert name == f"rmsnorm-{rmsnorm.__version__}.tar.gz"
    left_out = {"tests"}
    for folder in ("src", "include", "bindings"):
        for file in sorted((ROOT / folder).rglob("*")):
            ours = file.is_file() and not {"__pycache__", *left_out} & set(file.parts)
            if ours and file.suffix != ".so":
                assert (source / file.relative_to(ROOT)).exists(), file
    assert not (source / "build").exists() and not (source / "tests" / "data").exists()
    if os.environ.get("RMSNORM_TEST_FULL") != "1":
        subprocess.run(["cmake", "-S", source, "-B", tmp_path / "build", "-DRMSNORM_CUDA=OFF",
                        "-DSKBUILD=2"], check=True, stdout=subprocess.DEVNULL)
        return
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                    "--no-build-isolation", "--config-settings=cmake.define.RMSNORM_CUDA=OFF",
                    "-w", tmp_path, tmp_path / name], check=True)
    (wheel,) = tmp_path.glob("rmsnorm-*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target",
                    tmp_path / "there", wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
    environment.pop("RMSNORM_LIBRARY", None)
    subprocess.run([sys.executable, "-m", "rmsnorm"], check=True, env=environment,
                   stdout=subprocess.DEVNULL)


def test_cuda_asked_for_where_there_is_none():
    if any(device.type == "cuda" for device in rmsnorm.devices()):
        pytest.skip("there is a CUDA device")
    with pytest.raises(rmsnorm.UnsupportedError) as caught:
        _context.get(_abi.DEVICE_CUDA)
    assert caught.value.status in (_abi.ERROR_BACKEND_NOT_BUILT, _abi.ERROR_NO_DRIVER,
                                   _abi.ERROR_NO_DEVICE)
