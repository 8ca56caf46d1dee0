"""The examples run, and README's Python does."""
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from stub import ROOT


def test_numpy_training():
    program = ROOT / "examples/python/numpy_training.py"
    done = subprocess.run([sys.executable, program], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith("100.0%"), done
    done = subprocess.run([sys.executable, program, "2"], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 1, "three steps are too few"


def test_train_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    program = ROOT / "examples/python/train_transformers.py"
    done = subprocess.run([sys.executable, program], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0, done
    done = subprocess.run([sys.executable, program, "2"], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 1, "two steps are too few"


def train(tmp_path, *arguments, launcher=()):
    """examples/train on the CPU, two steps of its smallest network; what it printed and wrote."""
    pytest.importorskip("torch")
    pytest.importorskip("tqdm")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *launcher, ROOT / "examples/train/train.py", "--cpu", "--tiny",
         "--steps=2", "--batch=2", "--length=16", f"--out={tmp_path}", *arguments],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    written = tmp_path / "curves.json"
    return done, json.loads(written.read_text()) if written.exists() else None


def test_training(tmp_path):
    """Each norm from the same start: the losses coincide and fall. Liger has no CPU kernels."""
    done, results = train(tmp_path, "--norm=composite,torch,liger,rmsnorm,rmsnorm-add", "--turn=1")
    assert done.returncode == 0, done.stdout
    assert "on the CPU" in done.stdout and "left out: --norm liger: " in done.stdout
    runs = results["runs"]
    assert list(runs) == ["composite", "torch", "rmsnorm", "rmsnorm-add"]
    for run in runs.values():
        assert run["losses"] == pytest.approx(runs["composite"]["losses"], abs=2e-3)
        assert run["losses"][1] < run["losses"][0] and run["tokens_per_second"] > 0
        assert run["validation"] == pytest.approx(runs["composite"]["validation"], abs=2e-3)
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert rows[0] == "step,composite,torch,rmsnorm,rmsnorm-add" and len(rows) == 3
    if importlib.util.find_spec("matplotlib"):
        assert "<svg" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize("how", ["", "--fsdp"], ids=["ddp", "fsdp2"])
def test_training_in_two_processes(tmp_path, how):
    """DDP and FSDP2 give the same losses; text that is missing is said."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
                "--standalone")
    done, results = train(tmp_path, "--norm=torch,rmsnorm", f"--text={tmp_path}",
                          *filter(None, [how]), launcher=launcher)
    assert done.returncode == 0, done.stdout
    assert "has no Python sources to speak of" in done.stdout
    assert results["processes"] == 2 and results["parallel"] == (how[2:] or "ddp")
    assert results["runs"]["rmsnorm"]["losses"] == pytest.approx(
        results["runs"]["torch"]["losses"], abs=2e-3)


def test_training_profile(tmp_path):
    done, results = train(tmp_path, "--norm=rmsnorm", "--profile")
    assert done.returncode == 0, done.stdout
    groups = results["runs"]["rmsnorm"]["groups"]
    assert {"norm", "matmul", "attention", "activation", "optimizer"} < set(groups), groups
    assert all(milliseconds > 0 for milliseconds in groups.values()), groups


def test_training_refuses(tmp_path):
    for bad in ("--norm=layernorm", "--steps=0", "--fsdp", "--glu=relu"):
        done, results = train(tmp_path, bad)
        assert done.returncode == 2 and bad.split("=")[0] in done.stdout and results is None
    done, results = train(tmp_path, "--norm=liger")
    assert done.returncode == 1 and "none of the norms can run here" in done.stdout


def test_tables(tmp_path):
    """They are measured, printed, and drawn where there is matplotlib."""
    pytest.importorskip("torch")
    folder = ROOT / "examples/python/tables"
    found = tmp_path / "tables.json"
    done = subprocess.run([sys.executable, folder / "measure.py", "--small", "--json", found],
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    for name in ("PyTorch, composite", "PyTorch, fused", "PyTorch, three linears", "librmsnorm"):
        assert name in done.stdout, done.stdout
    for each in json.loads(found.read_text())["swiglu"]["results"].values():
        assert each["error"] < 2**-7 and each["forward_us"] > 0 and each["both_us"] > 0
    if importlib.util.find_spec("matplotlib"):
        subprocess.run([sys.executable, folder / "report.py", found, "--pictures", tmp_path],
                       stdout=subprocess.PIPE, check=True)
        assert {path.name for path in tmp_path.glob("*.svg")} == {"widths.svg", "norm.svg",
                                                                  "swiglu.svg"}


@pytest.mark.parametrize("number, wanted", [(0, ["numpy"]), (1, ["torch", "transformers"])])
def test_readme(number, wanted):
    """The Python examples of README.md, as they stand there."""
    for name in wanted:
        pytest.importorskip(name)
    section = (ROOT / "README.md").read_text().split("\n## Python\n")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[number]
    subprocess.run([sys.executable, "-c", code], check=True)
