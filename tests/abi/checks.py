"""What the checks of tests/abi/run share."""
import pathlib
import re
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HEADER = (ROOT / "include/rmsnorm.h").read_text()
FUNCTIONS = set(re.findall(r"\b(rmsnorm_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)))

CHECKS = []  # (name, function)


class Skip(Exception):
    pass


def check(name, *args):
    """Registers the function below as a check, called with args."""
    def register(function):
        CHECKS.append((name, lambda: function(*args)))
        return function
    return register


def run(*command, **options):
    """Its output; an error with what it said if it fails."""
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        words = " ".join(map(str, command))
        raise AssertionError(f"{words}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def find_tool(*names):
    for name in names:
        if shutil.which(name):
            return name
    raise Skip(f"there is no {names[0]}")


def expect_none(found, what):
    if found:
        more = [f"and {len(found) - 20} more"] if len(found) > 20 else []
        raise AssertionError("\n  ".join([what, *map(str, found[:20]), *more]))


def has_cuda(flavour):
    return not list((flavour / "CMakeFiles").rglob("cuda/absent.cpp.o"))
