"""The operations in fp64 on one buffer set, to see that an implementation computes what it should.

y, h and dx are compared in the first and the last rows, dweight over all. This tells a wrong kernel
from a right one; the tests of this library judge in ulps.
"""
import torch

ENDS = 128  # rows at either end
CHUNK = 1 << 25  # elements at a time

# Greatest relative error, ||got - exact|| / ||exact||: eight half-ulps, or what sums in fp32 lose.
TOLERANCE = {"fp32": 1e-5, "fp16": 8 * 2.0**-11, "bf16": 8 * 2.0**-8}


class Exact:
    def __init__(self, cell, b, w, eps):
        self.tolerance = TOLERANCE[cell.dtype]
        last = range(max(0, cell.rows - ENDS), cell.rows)
        picked = sorted({*range(min(cell.rows, ENDS)), *last})
        self.picked = torch.tensor(picked, device=b.x.device)
        weight = w.double()
        h = b.x[self.picked].double()
        if cell.op == "add":
            h = h + b.residual[self.picked].double()
        rstd = torch.rsqrt(h.square().mean(1, keepdim=True) + eps)
        if cell.op == "bwd":
            g = b.dy[self.picked].double() * weight
            xhat = h * rstd
            dx = rstd * (g - xhat * (xhat * g).mean(1, keepdim=True))
            self.outputs = [dx, self.dweight(cell, b, eps)]
        else:
            self.outputs = [h * rstd * weight] + ([h] if cell.op == "add" else [])

    @staticmethod
    def dweight(cell, b, eps):
        total = torch.zeros(cell.cols, dtype=torch.float64, device=b.x.device)
        step = max(1, CHUNK // cell.cols)
        for start in range(0, cell.rows, step):
            x = b.x[start:start + step].double()
            xhat = x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)
            total += (b.dy[start:start + step].double() * xhat).sum(0)
        return total

    def error(self, got):
        """The greatest relative error of an implementation's outputs; raises where it is wrong."""
        worst = 0.0
        for tensor, exact in zip(got, self.outputs):
            tensor = tensor.reshape(-1, exact.shape[-1]) if exact.dim() == 2 else tensor.flatten()
            part = tensor[self.picked] if exact.dim() == 2 else tensor
            error = ((part.double() - exact).norm() / exact.norm()).item()
            if not error <= self.tolerance:  # NaN too
                raise ArithmeticError(f"wrong result: relative error {error:.1e}")
            worst = max(worst, error)
        return worst
