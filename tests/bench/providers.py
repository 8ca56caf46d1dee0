"""This library and its neighbours, each behind the same few methods.

    load()          imports it; raises where it is not there
    packages        what its version hangs on
    refuses(cell)   why it is not even asked for a cell, or None
    start(op)       before the first call of a cell
    fwd(b, w), bwd(b, w), add(b, w)
                    a function without arguments that does the work on one buffer set and returns
                    its outputs: (y,), (dx, dweight), (y, h). A method that is missing: no such call

Neighbours are called at the level below their autograd wrappers, in the way that their modules call
it, and allocate their outputs, as they always do; in a CUDA graph that costs nothing.
"""
import hashlib
import importlib.metadata
import math
import os

import torch
import torch.nn.functional as F

EPS = 1e-6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Buffers:
    """What a call reads, and where this library writes: one of the sets that take turns."""

    def __init__(self, cell):
        def output(*shape):
            return torch.empty(shape or (cell.rows, cell.cols), device="cuda",
                               dtype=DTYPES[cell.dtype])
        self.x = random_input(cell)
        if cell.op == "fwd":
            self.y = output()
        if cell.op == "add":
            self.residual, self.y, self.h = random_input(cell), output(), output()
        if cell.op == "bwd":
            self.dy, self.dx = random_input(cell), output()
            self.dw = output(cell.cols)
            norm = torch.linalg.vector_norm(self.x, dim=1, dtype=torch.float32)
            self.rstd = torch.rsqrt(norm.square() / cell.cols + EPS)

    def spoil(self):
        """Outputs hold what somebody wrote: NaN, so that what is not written shows."""
        for name in ("y", "h", "dx", "dw"):
            if hasattr(self, name):
                getattr(self, name).fill_(math.nan)


def random_input(cell):
    m, n = cell.rows, cell.cols

    def normal(*shape):
        return torch.empty(shape, device="cuda", dtype=DTYPES[cell.dtype]).normal_()
    if cell.layout == "strided":
        return normal(m, 3 * n // 2)[:, :n]
    if cell.layout == "shifted":
        return normal(m * n + 1)[1:].view(m, n)
    return normal(m, n)


def random_weight(cell):
    """Near 1 or -1, so that a gradient written over dy again and again neither grows nor fades."""
    size = torch.empty(cell.cols, device="cuda").uniform_(0.875, 1.125)
    return (size * torch.randn_like(size).sign()).to(DTYPES[cell.dtype])


def twin(tensor):
    """A copy that lies in memory in the same way."""
    base = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(),
                       dtype=tensor.dtype, device=tensor.device)
    return base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(tensor)


class Provider:
    packages = ()

    def load(self):
        pass

    def versions(self):
        found = {}
        for name in self.packages:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:  # imported, but not installed
                found[name] = "unknown"
        return found

    def refuses(self, cell):
        return None

    def start(self, op):
        pass


class Ceiling(Provider):
    """Element-wise kernels that move the bytes which the operation must move."""

    def fwd(self, b, w):
        return lambda: (torch.mul(b.x, 1.001, out=b.y),)

    def bwd(self, b, w):
        return lambda: (torch.add(b.x, b.dy, out=b.dx),)

    def add(self, b, w):
        return lambda: (torch.mul(b.x, 1.001, out=b.y), torch.mul(b.residual, 1.001, out=b.h))


class Ours(Provider):
    flags = 0

    def load(self):
        import torch_calls  # loads the library that RMSNORM_LIBRARY names
        self.calls = torch_calls

    def versions(self):
        """With the file's hash: results of two builds are not to be joined."""
        path = self.calls.library._name
        if not os.path.isfile(path):  # found by the loader
            return {"librmsnorm": self.calls.version()}
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return {"librmsnorm": f"{self.calls.version()} ({digest[:8]})"}

    def run(self, call, *outputs):
        self.kernel = call.kernel()

        def run():
            call()
            return outputs
        return run

    def fwd(self, b, w):
        return self.run(self.calls.make_fwd(b.x, w, b.y, self.flags), b.y)

    def bwd(self, b, w):
        call = self.calls.make_bwd(b.dy, b.x, w, b.rstd, b.dx, b.dw, self.flags)
        return self.run(call, b.dx, b.dw)

    def add(self, b, w):
        return self.run(self.calls.make_add(b.x, b.residual, w, b.y, b.h, self.flags), b.y, b.h)


class Overlap(Ours):
    """With RMSNORM_FLAG_OVERLAP: each kernel may start before the one before it has ended."""
    flags = 1


class Torch(Provider):
    """torch's native kernels, eager. It has no fused add: that is two kernels."""
    packages = ("torch",)

    def fwd(self, b, w):
        return lambda: (F.rms_norm(b.x, w.shape, w, EPS),)

    def bwd(self, b, w):
        rstd = b.rstd.view(-1, 1)
        backward = torch.ops.aten._fused_rms_norm_backward
        return lambda: backward(b.dy, b.x, list(w.shape), rstd, w, [True, True])

    def add(self, b, w):
        def run():
            h = b.x + b.residual
            return F.rms_norm(h, w.shape, w, EPS), h
        return run


def composite(x, w):
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (wide * rstd * w.float()).to(x.dtype)


def composite_add(x, residual, w):
    h = x + residual
    return composite(h, w), h


class Compile(Provider):
    """torch.compile of the formula, anew for each shape: what it does best."""
    packages = ("torch", "triton")

    def load(self):
        import torch._functorch.config
        torch._functorch.config.donated_buffer = False  # one forward, many backwards

    def start(self, op):
        torch._dynamo.reset()
        self.f = torch.compile(composite_add if op == "add" else composite, dynamic=False)

    def fwd(self, b, w):
        return lambda: (self.f(b.x, w),)

    def add(self, b, w):
        return lambda: self.f(b.x, b.residual, w)

    def bwd(self, b, w):
        x, weight = b.x.detach().requires_grad_(), w.detach().requires_grad_()
        with torch.enable_grad():
            y = self.f(x, weight)
        return lambda: torch.autograd.grad(y, (x, weight), b.dy, retain_graph=True)


class Liger(Provider):
    packages = ("liger-kernel",)
    LLAMA = 0  # its casting mode

    def load(self):
        from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward
        from liger_kernel.ops.rms_norm import rms_norm_backward, rms_norm_forward
        from liger_kernel.ops.utils import calculate_settings
        self.forward, self.backward = rms_norm_forward, rms_norm_backward
        self.fused, self.settings = fused_add_rms_norm_forward, calculate_settings

    def fwd(self, b, w):
        return lambda: self.forward(b.x, w, EPS, 0.0, "llama", None)[:1]

    def bwd(self, b, w):
        block, warps = self.settings(w.shape[0])
        dy = twin(b.dy)  # by default it writes dx there
        return lambda: self.backward(dy, b.x, w, b.rstd, 0.0, self.LLAMA, block, warps, True, None)

    def add(self, b, w):
        return lambda: self.fused(b.x, b.residual, w, EPS, 0.0, "llama")[:2]


class Cudnn(Provider):
    packages = ("nvidia-cudnn-frontend",)

    def load(self):
        import cudnn.ops.norm.rmsnorm  # puts its operators into torch.ops.cudnn
        self.ops = torch.ops.cudnn

    def versions(self):
        return {**super().versions(), "cuDNN": str(torch.backends.cudnn.version())}

    def refuses(self, cell):
        if cell.layout == "shifted":
            return "declares its tensors 16-byte aligned"
        return None

    def fwd(self, b, w):
        x, scale = b.x[:, :, None, None], w[None, :, None, None]
        return lambda: self.ops.rmsnorm(x, scale, EPS)[:1]

    def bwd(self, b, w):
        dy, x, scale = b.dy[:, :, None, None], b.x[:, :, None, None], w[None, :, None, None]
        rstd = b.rstd[:, None, None, None]
        return lambda: self.ops.rmsnorm_bwd(dy, x, scale, rstd)[:2]


class Quack(Provider):
    packages = ("quack-kernels", "nvidia-cutlass-dsl")

    def load(self):
        from quack.rmsnorm import rmsnorm_bwd, rmsnorm_fwd
        self.forward, self.backward = rmsnorm_fwd, rmsnorm_bwd

    def fwd(self, b, w):
        return lambda: self.forward(b.x, w, eps=EPS)[:1]

    def bwd(self, b, w):
        return lambda: self.backward(b.x, w, b.dy, b.rstd)[:2]

    def add(self, b, w):
        return lambda: self.forward(b.x, w, residual=b.residual, eps=EPS)[:2]


PROVIDERS = {"ours": Ours, "overlap": Overlap, "torch": Torch, "compile": Compile, "liger": Liger,
             "cudnn": Cudnn, "quack": Quack}
