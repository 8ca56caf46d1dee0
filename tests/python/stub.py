"""Libraries that are not as they should be: every function of layout.json, each a stub."""
import json
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYOUT = json.loads((ROOT / "bindings/layout.json").read_text())


def build(folder, bodies, without=()):
    """A librmsnorm.so of today's ABI whose other functions return 0, but for those whose bodies are
    given."""
    bodies = {"rmsnorm_abi_version": "return RMSNORM_ABI_VERSION;", **bodies}
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = ["#include <rmsnorm.h>", "#include <string.h>"]
    for name, function in LAYOUT["functions"].items():
        if name in without:
            continue
        body = bodies.get(name, "" if function["result"] == "void" else "return 0;")
        arguments = ", ".join(f"{each['type']} {each['name']}" for each in function["arguments"])
        source.append(f"{function['result']} {name}({arguments or 'void'}) {{ {body} }}")
    file = folder / "stub.c"
    file.write_text("\n".join(source))
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-I", ROOT / "include", file, "-o",
                    folder / "librmsnorm.so"], check=True)
    return folder / "librmsnorm.so"


# A library that says that it has worked.
IDLE = {
    "rmsnorm_context_create": "*context = (rmsnorm_context_t *)1; return 0;",
    "rmsnorm_build_info": 'return "stub";',
    "rmsnorm_device_count": "*count = device == RMSNORM_DEVICE_CPU; return 0;",
    "rmsnorm_device_info": "info->supported = 1; return 0;",
    "rmsnorm_status_name": 'return "status";',
    "rmsnorm_last_error": 'if (capacity >= 5) memcpy(buf, "text", 5); return 5;',
}
