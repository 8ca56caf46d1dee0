"""The examples run, and README's Python does."""
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


@pytest.mark.parametrize("number, wanted", [(0, ["numpy"]), (1, ["torch", "transformers"])])
def test_readme(number, wanted):
    """The Python examples of README.md, as they stand there."""
    for name in wanted:
        pytest.importorskip(name)
    section = (ROOT / "README.md").read_text().split("\n## Python\n")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[number]
    subprocess.run([sys.executable, "-c", code], check=True)
