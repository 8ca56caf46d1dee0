#!/usr/bin/env python3
"""Train a small RMSNorm decoder and keep what its norms really see, as .npy files.

The model reads bytes: 4 layers, hidden size 256, 4 heads of 64, pre-norm RMSNorm (eps 1e-6),
RoPE, causal attention with per-head norms on q and k (slices of the packed qkv), SwiGLU MLP.
The text is the source of the Python standard library; every 20th file is held out.

After training, one forward and backward pass over 96 consecutive held-out bytes (one sequence)
captures, for each norm in KEPT (hooks; T = 96 tokens):

    NORM.x         (T, 256), q norm (T, 4, 64)   input of the norm; where there is a residual,
                                                 the output of the block before it
    NORM.residual  (T, 256)                      residual stream; the norm sees h = x + residual
    NORM.weight    (256,), q norm (64,)          learned weight
    NORM.dy        as x                          gradient that reaches the norm's output
    NORM.dh        (T, 256)                      gradient that reaches h past the norm (skip path)
    NORM.dweight   as weight                     gradient of weight, by PyTorch autograd

All fp32. The loss is the mean over the 96 bytes times 1024 (LOSS_SCALE), so that gradients are
well inside fp16's range. HALF is stored again, rounded to nearest even, as NORM_f16 (float16)
and NORM_bf16 (bfloat16 bits in uint16), without dweight.

The shipped files: python3 train.py, with Python 3.11.7, its library's own sources as the text
(11.5 MB, and 0.5 MB held out) and PyTorch 2.11.0, on 2 CPU cores in 7 minutes; held-out loss
1.230 nats per byte. A rerun elsewhere gives files of the same kind, not the same bits.
"""
import argparse
import math
import pathlib
import sys
import sysconfig

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"train.py: {error.name} is missing: pip install torch numpy tqdm")

HIDDEN, LAYERS, HEADS, INNER, EPS = 256, 4, 4, 640, 1e-6
TOKENS, LOSS_SCALE = 96, 1024
KEPT = {  # file name: module
    "layer0_attn": "layers.0.attn_norm",
    "layer1_qnorm": "layers.1.q_norm",
    "layer2_mlp": "layers.2.mlp_norm",
    "final": "norm",
}
HALF = "layer2_mlp"


class RMSNorm(nn.Module):
    """h = x + residual; returns the norm of h, and h."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x, residual=None):
        h = x if residual is None else x + residual
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS) * self.weight, h


def rope(x):
    """Rotate the two halves of each head of x (batch, heads, tokens, head size)."""
    tokens, half = x.shape[-2], x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(tokens, device=x.device)[:, None] * rate
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.mlp_norm = RMSNorm(HIDDEN), RMSNorm(HIDDEN)
        self.q_norm, self.k_norm = RMSNorm(HIDDEN // HEADS), RMSNorm(HIDDEN // HEADS)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.attn_out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
        self.mlp_out = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x, residual):
        y, residual = self.attn_norm(x, residual)
        packed = self.qkv(y).unflatten(-1, (3, HEADS, HIDDEN // HEADS))
        q, k, v = packed.unbind(2)
        q, k = self.q_norm(q)[0], self.k_norm(k)[0]
        q, k, v = rope(q.transpose(1, 2)), rope(k.transpose(1, 2)), v.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.attn_out(mixed.transpose(1, 2).flatten(2))
        y, residual = self.mlp_norm(x, residual)
        gate, up = self.gate_up(y).chunk(2, -1)
        return self.mlp_out(F.silu(gate) * up), residual


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, HIDDEN)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, 256, bias=False)

    def forward(self, tokens):
        x, residual = self.embed(tokens), None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return self.head(self.norm(x, residual)[0])


def mean_loss(model, rows):
    """Mean cross-entropy, in nats per byte, of rows (batch, tokens + 1)."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def read_text(folder):
    """The library's .py files under folder, as two byte tensors: for training, and held out."""
    skip = {"site-packages", "test", "tests", "idle_test"}
    files = [f for f in sorted(folder.rglob("*.py"))
             if not skip & set(f.relative_to(folder).parts) and "_sysconfigdata" not in f.name]
    if len(files) < 20:
        sys.exit(f"train.py: no Python sources under {folder}: name a folder with --text")
    held_out = files[::20]
    parts = [[f for f in files if f not in held_out], held_out]
    return [torch.tensor(bytearray().join(f.read_bytes() for f in part), dtype=torch.uint8)
            for part in parts]


def sample(text, batch, context, device):
    start = torch.randint(len(text) - context, (batch, 1))
    return text[start + torch.arange(context + 1)].long().to(device)


def train(model, text, args):
    norms = [p for p in model.parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": norms, "weight_decay": 0.0, "lr": 5 * args.lr},
              {"params": others, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / args.steps)))
    for _ in (bar := tqdm(range(args.steps))):
        loss = mean_loss(model, sample(text, args.batch, args.context, args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def capture(model, row):
    """One forward and backward pass over row; returns {norm: {array: tensor}}, outputs as y."""
    kept = {name: {} for name in KEPT}

    def hook(name):
        def keep(module, inputs, outputs):
            arrays, (y, h) = kept[name], outputs
            arrays.update(x=inputs[0], weight=module.weight, y=y)
            y.register_hook(lambda grad: arrays.update(dy=grad))
            if len(inputs) == 1 or inputs[1] is None:
                return None
            arrays.update(residual=inputs[1])
            skip = h.view_as(h)  # its own node: only the skip path's gradient comes here
            skip.register_hook(lambda grad: arrays.update(dh=grad))
            return y, skip
        return keep

    for name, path in KEPT.items():
        model.get_submodule(path).register_forward_hook(hook(name))
    model.zero_grad()
    (LOSS_SCALE * mean_loss(model, row)).backward()
    for arrays in kept.values():
        arrays["dweight"] = arrays["weight"].grad
        for key, value in arrays.items():
            value = value if value.ndim == 1 else value[0]  # the batch is one sequence
            arrays[key] = value.detach().cpu().contiguous()
    return kept


def save(kept, out):
    def write(name, arrays):
        for key, value in arrays.items():
            np.save(out / f"{name}.{key}.npy", value.numpy())

    for name, arrays in kept.items():
        write(name, {k: v for k, v in arrays.items() if k != "y"})
    half = {k: v for k, v in kept[HALF].items() if k not in ("y", "dweight")}
    write(HALF + "_f16", {k: v.half() for k, v in half.items()})
    write(HALF + "_bf16", {k: v.bfloat16().view(torch.uint16) for k, v in half.items()})


def check(kept, out):
    """Load every norm back; its output and weight gradient in fp64 must be the model's own."""
    for name, arrays in kept.items():
        a = {k: np.load(out / f"{name}.{k}.npy") for k in arrays if k != "y"}
        assert all(np.isfinite(v).all() and v.any() for v in a.values()), name
        assert a["weight"].std() > 0.01, f"{name}: the weight has not been learned"
        h = (a["x"] + a["residual"] if "residual" in a else a["x"]).astype(np.float64)
        n = h / np.sqrt((h * h).mean(-1, keepdims=True) + EPS)
        y, dweight = arrays["y"].numpy(), (n * a["dy"]).reshape(-1, h.shape[-1]).sum(0)
        y_error = np.abs(n * a["weight"] - y).max() / np.abs(y).max()
        w_error = np.abs(dweight - a["dweight"]).max() / np.abs(dweight).max()
        print(f"{name}: weight {a['weight'].min():.3f} to {a['weight'].max():.3f}, "
              f"error of y {y_error:.1e}, of dweight {w_error:.1e}")
        assert max(y_error, w_error) < 1e-5, name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here, library = pathlib.Path(__file__).resolve().parent, sysconfig.get_path("stdlib")
    parser.add_argument("--text", type=pathlib.Path, default=library, help="folder of .py files")
    parser.add_argument("--out", type=pathlib.Path, default=here, help="folder for the .npy files")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    text, held_out = read_text(args.text)
    model = Decoder().to(args.device)
    train(model, text, args)
    with torch.no_grad():
        loss = mean_loss(model, sample(held_out, 256, args.context, args.device)).item()
    print(f"held-out loss {loss:.3f} nats per byte")

    middle = len(held_out) // 2
    row = held_out[middle:middle + TOKENS + 1].long().to(args.device)[None]
    kept = capture(model, row)
    args.out.mkdir(parents=True, exist_ok=True)
    save(kept, args.out)
    check(kept, args.out)


if __name__ == "__main__":
    main()
