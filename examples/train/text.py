"""Real text without a download: the sources of the Python standard library, byte by byte."""
import pathlib
import sysconfig
from typing import Tuple

import torch
from torch import Tensor

LEAST = 1 << 16
HELD_OUT = 0.05


def load(folder: str) -> Tuple[bytes, str]:
    """All *.py files below a folder (empty: the standard library's), and what they are. Where there
    is too little of it: numbers, counted."""
    place = pathlib.Path(folder or sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in place.rglob("*.py") if "site-packages" not in path.parts)
    text = b"".join(path.read_bytes() for path in files)
    if len(text) >= LEAST:
        return text, f"{len(files)} files below {place}, {len(text) / 1e6:.1f} MB"
    text = " ".join(map(str, range(1 << 17))).encode()
    return text, f"{place} has no Python sources to speak of: numbers instead"


class Batches:
    """Pieces of the text on a device: a step's are the same whoever asks."""

    def __init__(self, text: bytes, batch: int, length: int, device: torch.device, rank: int = 0,
                 ranks: int = 1) -> None:
        whole = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        cut = int(len(whole) * (1 - HELD_OUT))
        self.train, self.held_out = whole[:cut].to(device), whole[cut:].to(device)
        self.batch, self.device, self.rank, self.ranks = batch, device, rank, ranks
        self.offsets = torch.arange(length + 1, device=device)

    def _pieces(self, text: Tensor, seed: int) -> Tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(text) - len(self.offsets), (self.batch, 1), generator=generator)
        pieces = text[starts.to(self.device, non_blocking=True) + self.offsets].long()
        return pieces[:, :-1], pieces[:, 1:]

    def training(self, step: int) -> Tuple[Tensor, Tensor]:
        """Tokens and what follows each, (batch, length)."""
        return self._pieces(self.train, step * self.ranks + self.rank)

    def validation(self, index: int) -> Tuple[Tensor, Tensor]:
        return self._pieces(self.held_out, -1 - index)
