"""rmsnorm.torch in two processes on the CPU: DDP, FSDP2, selective checkpointing, state_dict."""
import os
import pathlib

import pytest
from torch_places import torch


def test_two_processes(tmp_path, monkeypatch):
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    import torch_two_processes
    here = str(pathlib.Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(
        filter(None, (here, os.environ.get("PYTHONPATH")))))
    torch.multiprocessing.spawn(torch_two_processes.run, (str(tmp_path),), nprocs=2)
