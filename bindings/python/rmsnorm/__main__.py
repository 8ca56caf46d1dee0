"""python -m rmsnorm: what this installation is, what it can run on, and whether it computes.

Exit code 0: a library was found and every device it supports computed within its bound.
1: it was not so; the lines that start with FAILED say what is wrong. 2: a bad argument.
"""
import platform
import sys
from importlib import metadata
from typing import List

import rmsnorm
from rmsnorm import _abi, _context, _library, _selfcheck

CODES = {name: code for code, name in _context.DEVICE_NAMES.items()}


def main(arguments: List[str]) -> int:
    if arguments:
        print(__doc__.strip(), file=sys.stdout if arguments[0] in ("-h", "--help") else sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    print(f"rmsnorm {rmsnorm.__version__} for ABI {_abi.ABI_VERSION}, in {rmsnorm.__path__[0]}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in ("numpy", "ml_dtypes", "torch", "cupy", "jax"):
        print(f"  {name}: {installed(name)}")
    try:
        library = _library.load()
    except rmsnorm.LibraryError as error:
        print(f"FAILED {error}")
        return 1
    print(f"library {library.version} with ABI {library.functions.abi_version()}: {library.path}")
    print(f"  {library.build_info}")
    try:
        devices = rmsnorm.devices()
    except rmsnorm.Error as error:
        print(f"FAILED devices: {error}")
        return 1
    good = [check(device) for device in devices]
    if len(devices) == 1:
        try:
            _context.get(_abi.DEVICE_CUDA)
        except rmsnorm.Error as error:
            print(f"cuda: {error}")
    return 0 if all(good) else 1


def installed(name: str) -> str:
    """The version, without importing it."""
    names = metadata.packages_distributions() if sys.version_info >= (3, 10) else {}
    for distribution in {name: None, **dict.fromkeys(names.get(name, []))}:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            pass
    return "not installed"


def check(device: rmsnorm.Device) -> bool:
    """Prints a device's line; whether it is as it should be."""
    where = f"{device.type}:{device.ordinal}"
    about = (f"{where} {device.name}, {device.isa}, {device.processors} "
             f"{'processors' if device.type == 'cpu' else 'multiprocessors'}, "
             f"{device.memory_bytes / 2**30:.1f} GiB")
    if not device.supported:
        print(f"{about}: not supported by this build")
        return True
    try:
        error = _selfcheck.largest_error(CODES[device.type], device.ordinal)
    except Exception as problem:  # whatever it is, the report goes on
        print(f"{about}\nFAILED {where}: {problem}")
        return False
    bound = _selfcheck.BOUNDS[CODES[device.type]]
    print(f"{about}: largest error {error:.4f} ulp of at most {bound}")
    if not error <= bound:
        print(f"FAILED {where}: the error is beyond its bound")
    return error <= bound


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
