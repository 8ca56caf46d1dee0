#!/usr/bin/env python3
"""Trains a small transformers model whose norms are librmsnorm's, beside the original.

Two copies of a two-layer Qwen3 (it has QK norms too) with the same random weights learn to continue
sequences that count up from a random start; patch() makes one of them run on librmsnorm. Prints
both losses, and fails if they part or if nothing is learned. Runs on the CPU, in seconds; nothing
is downloaded.

usage: train_transformers.py [STEPS]
"""
import copy
import sys

import torch
import transformers

from rmsnorm.torch import patch

VOCABULARY, LENGTH, BATCH = 32, 16, 16


def model() -> torch.nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=LENGTH,
        pad_token_id=None, bos_token_id=0, eos_token_id=1))


def batch() -> torch.Tensor:
    start = torch.randint(VOCABULARY, (BATCH, 1))
    return (start + torch.arange(LENGTH)) % VOCABULARY


def main() -> int:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    torch.manual_seed(1)
    torch.set_num_threads(1)  # more only get in each other's way in a model this small
    original = model()
    patched = copy.deepcopy(original)
    changed = patch(patched)
    print(f"{len(changed)} modules of {changed[0].type} now run on librmsnorm:")
    print("  " + "\n  ".join(each.name for each in changed))

    optimizers = {net: torch.optim.AdamW(net.parameters(), lr=3e-3) for net in (original, patched)}
    first = gap = 0.0
    for step in range(steps):
        ids = batch()
        losses = []
        for net, optimizer in optimizers.items():
            loss = net(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        first = first or losses[0]
        gap = max(gap, abs(losses[0] - losses[1]))
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3}  loss {losses[0]:.4f} (original)  {losses[1]:.4f} (patched)")
    print(f"the losses were at most {gap:.1e} apart")
    return int(not (losses[1] < 0.5 * first and gap < 0.01 * first))


if __name__ == "__main__":
    sys.exit(main())
