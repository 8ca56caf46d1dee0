"""tests/vectors: calls and the exact bits that the CPU gives for them, through the C interface and
through rms_norm, glu and their gradients."""
import ctypes
import json
import pathlib

import numpy as np
import pytest
from reference import BF16, F16, F32, F64

import rmsnorm
from rmsnorm import _abi, _context, _library

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "vectors"
VECTORS = json.loads((FOLDER / "cases.json").read_text())
DATA = (FOLDER / "data.bin").read_bytes()
DTYPES = {"f32": (F32, _abi.DTYPE_F32), "f16": (F16, _abi.DTYPE_F16),
          "bf16": (BF16, _abi.DTYPE_BF16), "f64": (F64, _abi.DTYPE_F64)}
SCALARS = ("rows", "groups", "cols", "eps", "weight_offset", "rounding", "activation", "flags")
PARAMS = {"forward": _abi.ForwardParams, "backward": _abi.BackwardParams,
          "glu_forward": _abi.GluForwardParams, "glu_backward": _abi.GluBackwardParams}
ROUNDINGS = {_abi.ROUNDING_ONCE: "once", _abi.ROUNDING_LLAMA: "llama"}
ACTIVATIONS = {_abi.ACTIVATION_SILU: "silu", _abi.ACTIVATION_GELU_TANH: "gelu_tanh",
               _abi.ACTIVATION_GELU_ERF: "gelu"}


def tensors_of(vector):
    return [key[:-len(".dtype")] for key in vector if key.endswith(".dtype")]


def dtype_of(vector, name):
    return DTYPES[vector[f"{name}.dtype"]][0]


def read(vector, name, when):
    """The bytes of a tensor's own memory "before" or "after"."""
    size = vector[f"{name}.elements"] * dtype_of(vector, name).itemsize
    if f"{name}.{when}" in vector:
        begin = vector[f"{name}.{when}"]
        return DATA[begin:begin + size]
    return b"\xa5" * size if when == "before" else read(vector, name, "before")


def memories_of(vector):
    """A new array for each tensor that has memory of its own, as the call finds it."""
    found = {}
    for name in tensors_of(vector):
        if f"{name}.memory" not in vector:
            dtype = dtype_of(vector, name)
            found[name] = np.frombuffer(bytearray(read(vector, name, "before")), dtype)
    return found


def memory_of(vector, memories, name):
    return memories[vector.get(f"{name}.memory", name)]


def judge(vector, memories):
    for name, memory in memories.items():
        expected = np.frombuffer(read(vector, name, "after"), memory.dtype)
        bits = f"u{memory.dtype.itemsize}"
        same = (memory.view(bits) == expected.view(bits)) | (np.isnan(memory) & np.isnan(expected))
        assert same.all(), f"{name}: element {int(np.argmin(same))} of {memory.size} differs"


def params_of(vector, memories):
    params = PARAMS[vector["op"]](**{name: vector[name] for name in SCALARS if name in vector})
    for name in tensors_of(vector):
        memory, tensor = memory_of(vector, memories, name), getattr(params, name)
        if memory.size:
            tensor.data = memory.ctypes.data + vector[f"{name}.offset"] * memory.itemsize
        tensor.row_stride = vector[f"{name}.row_stride"]
        tensor.group_stride = vector[f"{name}.group_stride"]
        tensor.dtype = DTYPES[vector[f"{name}.dtype"]][1]
    return params


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_c_interface(vector):
    functions, handle = _library.load().functions, _context.get(_abi.DEVICE_CPU, 0).handle
    memories = memories_of(vector)
    params, size = params_of(vector, memories), ctypes.c_size_t()
    status = getattr(functions, f"{vector['op']}_workspace_size")(handle, params, size)
    if status == _abi.SUCCESS:
        workspace = ctypes.create_string_buffer(size.value) if size.value else None
        status = getattr(functions, vector["op"])(handle, params, workspace, size.value, None)
    text = ctypes.create_string_buffer(1024)
    functions.last_error(text, len(text))
    assert status == vector["status"], text.value
    if status != _abi.SUCCESS:
        assert text.value.decode().startswith(vector["error"])
    judge(vector, memories)


# ---- rms_norm, glu and their gradients -----------------------------------------------------------

# The dimensions of a tensor beside (rows, groups, cols).
VECTOR_NAMES, RSTD = ("weight", "bias", "dweight", "dbias"), "rstd"


def array_of(vector, memories, name):
    """The view that the vector describes; None where there is no such tensor."""
    if f"{name}.dtype" not in vector:
        return None
    memory, offset = memory_of(vector, memories, name), vector[f"{name}.offset"]
    strides = [vector[f"{name}.row_stride"], vector[f"{name}.group_stride"], 1]
    shape = [vector["rows"], vector["groups"] or 1, vector["cols"]]
    if name in VECTOR_NAMES:
        shape, strides = shape[1:], strides[1:]
        if strides[0] == 0 or shape[0] == 1:
            shape, strides = shape[1:], strides[1:]
    elif name == RSTD:
        shape, strides = shape[:-1], strides[:-1]
    steps = [stride * memory.itemsize if size > 1 else 0 for size, stride in zip(shape, strides)]
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, steps)


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if vector["status"] == 0],
                         ids=lambda vector: vector["name"])
def test_arrays(vector):
    memories = memories_of(vector)

    def array(name, absent=None):
        found = array_of(vector, memories, name)
        return absent if found is None else found

    if vector["op"].startswith("glu"):
        activation = ACTIVATIONS[vector["activation"]]
        if vector["op"] == "glu_forward":
            rmsnorm.glu(array("gate"), array("up"), activation, out=array("y"))
        else:
            rmsnorm.glu_backward(array("dy"), array("gate"), array("up"), activation,
                                 dgate=array("dgate", False), dup=array("dup", False))
        return judge(vector, memories)
    common = {"eps": vector["eps"], "weight_offset": vector["weight_offset"]}
    if vector["op"] == "forward":
        rmsnorm.rms_norm(array("x"), array("weight"), **common, residual=array("residual"),
                         bias=array("bias"), rounding=ROUNDINGS[vector["rounding"]],
                         out=array("y"), residual_out=array("residual_out", False),
                         rstd=array("rstd", False))
    else:
        outputs = {name: array(name, False) for name in ("dx", "dresidual", "dweight", "dbias")}
        rmsnorm.rms_norm_backward(array("dy"), array("x"), array("weight"), **common, **outputs,
                                  rstd=array("rstd"), dresidual_out=array("dresidual_out"),
                                  accumulate=bool(vector["flags"] & _abi.FLAG_ACCUMULATE))
    judge(vector, memories)
