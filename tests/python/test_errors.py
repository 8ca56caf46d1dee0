"""What is refused: a Python exception that names the argument, and nothing written."""
import devices
import numpy as np
import pytest
from reference import F16, F32, F64

import rmsnorm
from rmsnorm import ArgumentError, _abi

ROWS, COLS = 4, 32


def refused(device, call, error, *words):
    """The call raises error, whose text has the words."""
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def arrays(device, random):
    """Good arguments of a forward call, with outputs full of NaN."""
    whole = {"x": device.of(random(ROWS, COLS)), "weight": device.of(random(COLS)),
             "residual": device.of(random(ROWS, COLS)), "bias": device.of(random(COLS)),
             "out": device.empty((ROWS, COLS), F32),
             "residual_out": device.empty((ROWS, COLS), F32),
             "rstd": device.empty((ROWS,), F32)}
    yield whole
    for name in ("out", "residual_out", "rstd"):
        assert np.isnan(device.numpy(whole[name])).all(), f"{name} was written"


SHAPES = [("x", (ROWS, 0)), ("x", ()), ("weight", (COLS + 1,)), ("weight", (1, COLS)),
          ("weight", (ROWS, COLS + 1)), ("weight", ()), ("bias", (ROWS,)), ("residual", (COLS,)),
          ("residual", (ROWS, COLS, 1)), ("out", (ROWS + 1, COLS)), ("out", (COLS, ROWS)),
          ("residual_out", (ROWS, COLS - 1)), ("rstd", (ROWS, 1)), ("rstd", ())]


@pytest.mark.parametrize("name, shape", SHAPES)
def test_shapes(device, arrays, name, shape):
    given = {**arrays, name: device.of(np.zeros(shape, np.float32))}
    refused(device, lambda: rmsnorm.rms_norm(**given), ArgumentError, name,
            "dimensions" if shape == () and name == "x" else str(shape))


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual", "out", "residual_out", "rstd"])
def test_dtypes(device, arrays, name):
    shape = tuple(arrays[name].shape)
    for dtype in ("int32", "int64", "bool", "uint8", "complex64"):
        given = {**arrays, name: device.of(np.zeros(shape, dtype))}
        refused(device, lambda: rmsnorm.rms_norm(**given), ArgumentError, name, dtype, "float16")
    given = {**arrays, name: device.of(np.zeros(shape, F64))}
    refused(device, lambda: rmsnorm.rms_norm(**given), ArgumentError,
            {"out": "out", "x": "fp64"}.get(name, name), "fp64")
    if name == "rstd":
        given = {**arrays, name: device.of(np.zeros(shape, F16))}
        refused(device, lambda: rmsnorm.rms_norm(**given), ArgumentError, name, "fp16")


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
@pytest.mark.parametrize("thing", [3, True, False, 2.5, "x", [1.0, 2.0], (1.0,), b"abc", {}],
                         ids=repr)
def test_what_is_no_array(device, arrays, name, thing):
    refused(device, lambda: rmsnorm.rms_norm(**{**arrays, name: thing}), TypeError, name,
            str(thing) if isinstance(thing, bool) else type(thing).__name__)


@pytest.mark.parametrize("x", [None, True, False])
def test_x_is_required(device, arrays, x):
    refused(device, lambda: rmsnorm.rms_norm(**{**arrays, "x": x}), TypeError, "x ", str(x))


@pytest.mark.parametrize("name, value, error", [
    ("eps", -1e-6, ArgumentError), ("eps", float("nan"), ArgumentError),
    ("eps", float("inf"), ArgumentError), ("eps", "1e-6x", TypeError), ("eps", None, TypeError),
    ("eps", [1e-6], TypeError), ("eps", np.ones(2), TypeError),
    ("weight_offset", float("nan"), ArgumentError), ("weight_offset", 1e-40, ArgumentError),
    ("weight_offset", None, TypeError), ("rounding", "twice", ArgumentError),
    ("rounding", 1, ArgumentError), ("rounding", None, ArgumentError),
    ("rounding", [], ArgumentError)])
def test_scalars(device, arrays, name, value, error):
    for _ in range(2):
        refused(device, lambda: rmsnorm.rms_norm(**{**arrays, name: value}), error, name)


def test_outputs_that_do_not_fit(device, arrays):
    for name, wide in (("out", (ROWS, 2 * COLS)), ("residual_out", (ROWS, 2 * COLS))):
        buffer = device.empty(wide, F32)
        refused(device, lambda: rmsnorm.rms_norm(**{**arrays, name: buffer[:, ::2]}), ArgumentError,
                name, "contiguous")
        assert np.isnan(device.numpy(buffer)).all()
    x = device.of(np.ones((2, 3, 4, COLS), F32))
    buffer = device.empty((4, 6, 8, COLS), F32)
    refused(device, lambda: rmsnorm.rms_norm(x, out=buffer[::2, ::2, ::2]), ArgumentError, "out",
            "contiguous")
    assert np.isnan(device.numpy(buffer)).all()


def test_overlap(device, arrays):
    buffer = device.empty((ROWS + 1, COLS), F32)
    refused(device, lambda: rmsnorm.rms_norm(
        **{**arrays, "x": buffer[1:], "out": buffer[:-1]}), ArgumentError, "out", "overlaps x")
    refused(device, lambda: rmsnorm.rms_norm(
        **{**arrays, "residual_out": buffer[1:], "out": buffer[:-1]}), ArgumentError, "out",
        "overlaps residual_out")
    refused(device, lambda: rmsnorm.rms_norm(
        **{**arrays, "weight": buffer[0], "out": buffer[:-1]}), ArgumentError, "out",
        "overlaps weight")
    refused(device, lambda: rmsnorm.rms_norm(
        **{**arrays, "rstd": buffer[0, :ROWS], "out": buffer[:-1]}), ArgumentError, "rstd", "out")
    one = device.expanded(buffer[0], (ROWS, COLS))
    refused(device, lambda: rmsnorm.rms_norm(**{**arrays, "x": buffer[1:], "out": one}),
            ArgumentError, "out", "read-only" if device.name == "numpy" else "overlap")
    assert np.isnan(device.numpy(buffer)).all()


def test_missing_partners(device, arrays):
    with pytest.raises(ArgumentError, match="residual_out.*residual"):
        rmsnorm.rms_norm(arrays["x"], residual_out=arrays["residual_out"])
    with pytest.raises(ArgumentError, match="residual_out.*residual"):
        rmsnorm.rms_norm(arrays["x"], residual_out=True)
    with pytest.raises(ArgumentError, match="out"):
        rmsnorm.rms_norm(arrays["x"], out=False)


def test_no_groups(random):
    """groups = 0 would be read as 1 by the library."""
    nothing = np.zeros((3, 0, COLS), F32)
    with pytest.raises(ArgumentError, match="weight has shape \\(0, 32\\).* at least one group"):
        rmsnorm.rms_norm(nothing, np.zeros((0, COLS), F32))
    with pytest.raises(ArgumentError, match="dweight has shape \\(0, 32\\).* at least one group"):
        rmsnorm.rms_norm_backward(nothing, nothing, dweight=np.zeros((0, COLS), F32))
    assert rmsnorm.rms_norm(nothing, random(COLS)).shape == nothing.shape


@pytest.mark.parametrize("name", ["out", "residual_out", "rstd"])
def test_read_only_outputs(random, name):
    given = {"x": random(ROWS, COLS), "residual": random(ROWS, COLS),
             "out": np.full((ROWS, COLS), np.nan, F32),
             "residual_out": np.full((ROWS, COLS), np.nan, F32), "rstd": np.full(ROWS, np.nan, F32)}
    given[name].flags.writeable = False
    refused(None, lambda: rmsnorm.rms_norm(**given), ArgumentError, name, "read-only")
    assert all(np.isnan(given[output]).all() for output in ("out", "residual_out", "rstd"))
    # An array that was once written, and is told apart when it no longer may be.
    given[name].flags.writeable = True
    rmsnorm.rms_norm(**given)
    given[name].flags.writeable = False
    refused(None, lambda: rmsnorm.rms_norm(**given), ArgumentError, name, "read-only")


def test_misaligned(random):
    memory = np.frombuffer(bytearray(4 * COLS + 1), np.uint8)
    odd = memory[1:].view(F32)
    with pytest.raises(ArgumentError, match="^x.data .* not a multiple"):
        rmsnorm.rms_norm(odd)
    with pytest.raises(ArgumentError, match="argument out"):
        rmsnorm.rms_norm(np.ones(COLS, F32), out=odd)


def test_other_byte_order_and_masks(random):
    with pytest.raises(ArgumentError, match="x has dtype >f4"):
        rmsnorm.rms_norm(random(2, 8).astype(">f4"))
    with pytest.raises(TypeError, match="weight is a masked array"):
        rmsnorm.rms_norm(random(2, 8), np.ma.masked_array(random(8)))


def test_fields_of_records(random):
    """Strides that are no whole number of elements: inputs are copied, outputs refused."""
    records = np.zeros(ROWS, [("a", "i1"), ("x", "f4", COLS)])
    records["x"] = random(ROWS, COLS)
    assert (rmsnorm.rms_norm(records["x"]) == rmsnorm.rms_norm(records["x"].copy())).all()
    with pytest.raises(ArgumentError, match="out"):
        rmsnorm.rms_norm(random(ROWS, COLS), out=records["x"])


@pytest.mark.parametrize("name, value, error, words", [
    ("dy", np.zeros((ROWS, COLS + 1), F32), ArgumentError, ("dy", "shape")),
    ("dy", None, TypeError, ("dy",)),
    ("x", None, TypeError, ("x",)),
    ("rstd", np.zeros((ROWS, COLS), F32), ArgumentError, ("rstd", "shape")),
    ("dresidual_out", np.zeros(COLS, F32), ArgumentError, ("dresidual_out", "shape")),
    ("dx", np.zeros((COLS, ROWS), F32), ArgumentError, ("dx", "shape")),
    ("dresidual", np.zeros((ROWS, COLS), F64), ArgumentError, ("dresidual", "fp64")),
    ("dweight", np.zeros(COLS - 1, F32), ArgumentError, ("dweight", "shape")),
    ("dweight", np.zeros((ROWS, COLS), F32), rmsnorm.UnsupportedError, ("dweight", "weight")),
    ("dbias", np.zeros(2 * COLS, F32)[::2], ArgumentError, ("dbias", "contiguous"))])
def test_backward(random, name, value, error, words):
    given = {"dy": random(ROWS, COLS), "x": random(ROWS, COLS), "weight": random(COLS),
             "dx": np.full((ROWS, COLS), np.nan, F32), name: value}
    refused(None, lambda: rmsnorm.rms_norm_backward(**given), error, *words)
    assert name == "dx" or np.isnan(given["dx"]).all()


def test_backward_that_computes_nothing(random):
    x = random(ROWS, COLS)
    with pytest.raises(ArgumentError, match="no output is asked for"):
        rmsnorm.rms_norm_backward(x, x, dx=False)
    with pytest.raises(ArgumentError, match="dweight must be given with accumulate"):
        rmsnorm.rms_norm_backward(x, x, random(COLS), accumulate=True)


def test_errors_have_a_status_and_a_class(random):
    with pytest.raises(rmsnorm.ArgumentError) as caught:
        rmsnorm.rms_norm(random(2, 8), eps=-1)
    assert caught.value.status == _abi.ERROR_VALUE
    assert isinstance(caught.value, (ValueError, rmsnorm.Error))
    with pytest.raises(ValueError) as caught:
        rmsnorm.rms_norm(random(2, 8), random(9))
    assert caught.value.status is None
    for error, base in ((rmsnorm.OutOfMemoryError, MemoryError),
                        (rmsnorm.LibraryError, ImportError),
                        (rmsnorm.UnsupportedError, RuntimeError),
                        (rmsnorm.CudaError, RuntimeError)):
        assert issubclass(error, base) and issubclass(error, rmsnorm.Error)


def test_each_status_has_its_class():
    from rmsnorm import _errors, _library
    functions = _library.load().functions
    wanted = {1: rmsnorm.ArgumentError, 2: rmsnorm.UnsupportedError, 3: rmsnorm.OutOfMemoryError,
              4: rmsnorm.CudaError, 5: rmsnorm.InternalError}
    codes = [value for name, value in vars(_abi).items() if name.startswith("ERROR_")]
    assert {code // 1000 for code in codes} == set(wanted)
    for code in codes:
        assert type(_errors.from_status(functions, code)) is wanted[code // 1000]


@pytest.mark.cuda
@pytest.mark.parametrize("name", devices.CUDA_NAMES)
def test_two_devices_in_one_call(name, random):
    device = devices.get(name)
    with pytest.raises(ArgumentError, match="weight is on cuda:0, but x is on cpu"):
        rmsnorm.rms_norm(random(2, 8), device.of(random(8)))
    with pytest.raises(ArgumentError, match="out is on cpu, but x is on cuda:0"):
        rmsnorm.rms_norm(device.of(random(2, 8)), out=random(2, 8))
