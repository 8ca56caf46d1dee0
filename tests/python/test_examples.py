"""The examples run, and README's Python does."""
import re
import subprocess
import sys

from stub import ROOT


def test_numpy_training():
    program = ROOT / "examples/python/numpy_training.py"
    done = subprocess.run([sys.executable, program], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith("100.0%"), done
    done = subprocess.run([sys.executable, program, "2"], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 1, "three steps are too few"


def test_readme():
    """The first Python example of README.md, as it stands there."""
    section = (ROOT / "README.md").read_text().split("\n## Python\n")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    subprocess.run([sys.executable, "-c", code], check=True)
