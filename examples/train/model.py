"""A mixture-of-experts decoder: pre-norms, QK norms, RoPE, the best 2 of 8 SwiGLU experts a token.

Every shape is known before the step, so that nothing waits for the GPU: an expert takes at most its
capacity of tokens, and what is over goes past it on the residual stream.
"""
import math
from typing import NamedTuple, Tuple

import parts
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Config(NamedTuple):
    vocabulary: int = 256  # bytes
    length: int = 512
    width: int = 512
    layers: int = 8
    heads: int = 8
    experts: int = 8
    chosen: int = 2
    hidden: int = 512  # of one expert
    capacity: float = 1.25  # of an even share of the tokens
    norm: str = "torch"
    glu: str = "torch"


TINY = dict(length=64, width=64, layers=2, heads=4, hidden=64)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = parts.norm(config.norm, self.head_width)
        self.k_norm = parts.norm(config.norm, self.head_width)

    def forward(self, x: Tensor, angles: Tuple[Tensor, Tensor]) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_width).unbind(2)
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2),
                                               v.transpose(1, 2), is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


def rope_angles(length: int, width: int) -> Tuple[Tensor, Tensor]:
    """cos and sin, (length, 1, width / 2): Su et al., "RoFormer", 2021."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, angles: Tuple[Tensor, Tensor]) -> Tensor:
    """x: (batch, length, heads, head width), each half of a head's width one coordinate."""
    cos, sin = (each.to(x.dtype) for each in angles)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Experts(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        experts, width, hidden = config.experts, config.width, config.hidden
        self.experts, self.chosen, self.capacity = experts, config.chosen, config.capacity
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        self.glu = parts.Glu(config.glu)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The experts' sum, and how uneven their load is (1: even)."""
        tokens = x.flatten(0, -2)
        count, width = tokens.shape
        shares, expert, place, load = self.route(tokens)
        capacity = math.ceil(self.capacity * count * self.chosen / self.experts)
        kept = place < capacity
        # Where each choice stands among all experts' places; one more for those that find none.
        slot = torch.where(kept, expert * capacity + place, self.experts * capacity)
        each = tokens.unsqueeze(1).expand(-1, self.chosen, -1).reshape(-1, width)
        queue = each.new_zeros(self.experts * capacity + 1, width).index_copy(0, slot, each)
        packed = torch.bmm(queue[:-1].view(self.experts, capacity, width), self.gate_up)
        made = torch.bmm(self.glu(*packed.chunk(2, -1)), self.down).flatten(0, 1)
        made = torch.cat((made, made.new_zeros(1, width)))
        shares = (shares.flatten() * kept).to(made.dtype).unsqueeze(1)
        y = (made.index_select(0, slot) * shares).view(count, self.chosen, width).sum(1)
        return y.view(x.shape), load

    def route(self, tokens: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each token's shares (tokens, chosen), and of each choice its expert and its place in that
        one's queue; the load's unevenness as in Fedus et al., "Switch Transformers", 2021."""
        with torch.autocast(tokens.device.type, enabled=False):
            odds = self.router(tokens.float()).softmax(-1)
        shares, expert = odds.topk(self.chosen)
        shares = shares / shares.sum(-1, keepdim=True)
        expert = expert.flatten()
        # One row an expert: the running sum goes along memory.
        mine = expert == torch.arange(self.experts, device=expert.device).unsqueeze(1)
        place = mine.cumsum(1, dtype=torch.int32).gather(0, expert.unsqueeze(0)).squeeze(0) - 1
        load = self.experts * (mine.float().mean(1) * odds.mean(0)).sum()
        return shares, expert, place.long(), load


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = parts.add_norm(config.norm, config.width)
        self.attention = Attention(config)
        self.experts_norm = parts.add_norm(config.norm, config.width)
        self.experts = Experts(config)

    def forward(self, branch: Tensor, stream: Tensor,
                angles: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        y, stream = self.attention_norm(branch, stream)
        y, stream = self.experts_norm(self.attention(y, angles), stream)
        branch, load = self.experts(y)
        return branch, stream, load


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = parts.add_norm(config.norm, config.width)
        self.out = nn.Linear(config.width, config.vocabulary, bias=False)
        cos, sin = rope_angles(config.length, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise(config)

    def initialise(self, config: Config) -> None:
        """Normal with a deviation of 0.02, less for what is added to the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                adds = name.endswith(("attention.out.weight", "experts.down"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * config.layers) if adds else 1))

    def forward(self, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """tokens: (batch, length). The logits, and the mean unevenness of the experts' loads."""
        stream = self.embedding(tokens)
        branch, angles = torch.zeros_like(stream), (self.cos, self.sin)
        loads = []
        for block in self.blocks:
            branch, stream, load = block(branch, stream, angles)
            loads.append(load)
        return self.out(self.norm(branch, stream)[0]), torch.stack(loads).mean()
