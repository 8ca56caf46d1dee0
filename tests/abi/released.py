"""Checks of today's library and header against what was released: that programs of yesterday
(tests/abi/released) find what they were compiled with, and that nothing differs from what was
accepted since (tests/abi/accepted). gate.py has the rules."""
import json
import pathlib
import tempfile

import gate
from checks import FUNCTIONS, ROOT, check, expect_none, find_tool, run

RELEASED = gate.HERE / "released"


@check("gate: nothing that was released is removed or changed")
def nothing_changed():
    expect_none(gate.differences()[0], "released, but no longer as it was:")


@check("gate: what was added is on the list")
def additions_listed():
    expect_none(gate.differences()[1], "added; tests/abi/gate.py --accept puts on the list:")


def assertions(layout: dict) -> str:
    """C that compiles only if the header has the layout's constants, structs and signatures."""
    lines = ['#include "rmsnorm.h"']
    for name, value in layout["constants"].items():
        if name not in gate.FREE:
            lines.append(f'_Static_assert({name} == {value}, "{name}");')
    for name, of in layout["typedefs"].items():
        lines.append(f"extern {name} a_{name};\nextern {of} a_{name};")
    for name, struct in layout["structs"].items():
        lines.append(f'_Static_assert(sizeof({name}) >= {struct["size"]}, "{name}");')
        for field in struct["fields"]:
            member = field["name"]
            lines.append(f'_Static_assert(offsetof({name}, {member}) == {field["offset"]} && '
                         f'sizeof((({name} *)0)->{member}) == {field["size"]}, '
                         f'"{name}.{member}");')
    for name, function in layout["functions"].items():
        arguments = ", ".join(argument["type"] for argument in function["arguments"])
        lines.append(f'{function["result"]} {name}({arguments or "void"});')
    return "\n".join(lines) + "\n"


@check("gate: the header has the released layout, by the compiler's own count")
def header_has_layout():
    for compilers in (("gcc", "cc"), ("clang-14", "clang")):
        run(find_tool(*compilers), "-std=c11", "-fsyntax-only", "-Wall", "-Werror", "-I",
            ROOT / "include", "-x", "c", "-", input=assertions(gate.accepted_layout()))


@check("gate: it sees what it is for")
def gate_sees():
    """Each kind of difference, made on purpose."""
    old = gate.accepted_layout()

    def broken(change) -> list:
        new = json.loads(json.dumps(old))
        change(new)
        return gate.compare(old, new)[0]

    fields = "rmsnorm_forward_params_t"
    for change in (
            lambda new: new["functions"].pop("rmsnorm_forward"),
            lambda new: new["functions"]["rmsnorm_forward"]["arguments"].pop(),
            lambda new: new["constants"].update(RMSNORM_ERROR_STRIDE=1005),
            lambda new: new["constants"].pop("RMSNORM_ERROR_STRIDE"),
            lambda new: new["typedefs"].update(rmsnorm_dtype_t="int64_t"),
            lambda new: new["handles"].clear(),
            lambda new: new["callbacks"]["rmsnorm_task_t"].update(result="int32_t"),
            lambda new: new["structs"][fields]["fields"].reverse(),
            lambda new: new["structs"][fields]["fields"].pop(),
            lambda new: new["structs"][fields]["fields"][1].update(type="int32_t", size=4),
            lambda new: new["structs"][fields].update(size=old["structs"][fields]["size"] + 8),
            lambda new: new["structs"]["rmsnorm_tensor_t"]["fields"].append(
                {"name": "more", "type": "int64_t", "offset": 32, "size": 8})
            or new["structs"]["rmsnorm_tensor_t"].update(size=40)):
        assert broken(change), "a change went unseen"
    new = json.loads(json.dumps(old))
    end = old["structs"][fields]["size"]
    new["structs"][fields]["fields"].append(
        {"name": "more", "type": "int64_t", "offset": end, "size": 8})
    new["structs"][fields]["size"] = end + 8
    new["functions"]["rmsnorm_more"] = {"result": "void", "arguments": []}
    assert gate.compare(old, new) == ([], [f"{fields}.more", "rmsnorm_more"])


# ---- Per flavour ---------------------------------------------------------------------------------

def golden_symbols(flavour):
    lines = run("nm", "-D", "--defined-only", "--with-symbol-versions",
                flavour / "librmsnorm.so").splitlines()
    found = {line.split()[-1] for line in lines if line.split()[-2] != "A"}  # A: version nodes
    wanted = set((gate.ACCEPTED / "symbols.txt").read_text().split())
    expect_none(sorted(wanted - found), "released, but not exported:")
    expect_none(sorted(found - wanted), "exported, but not in tests/abi/accepted/symbols.txt:")


def link_options(flavour, library: str) -> list:
    if library == "shared":
        return [flavour / "librmsnorm.so", f"-Wl,-rpath,{flavour}"]
    return [flavour / "librmsnorm.a", "-ldl", "-lpthread", "-lrt", "-lm"]


def every_function_links(flavour, library):
    """All that the header declares, by name, in a C program."""
    names = sorted(FUNCTIONS)
    calls = "".join(f"  (void (*)(void)){name},\n" for name in names)
    code = ('#include "rmsnorm.h"\n#include <stdio.h>\nvoid (*const volatile all[])(void) = {\n'
            f"{calls}}};\n"
            "int main(void) {\n  int found = 0;\n"
            "  for (unsigned i = 0; i < sizeof all / sizeof *all; ++i) found += all[i] != NULL;\n"
            '  printf("%d\\n", found);\n  return 0;\n}\n')
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "all"
        run("cc", "-std=c99", "-I", ROOT / "include", "-x", "c", "-", "-x", "none", "-o", program,
            *link_options(flavour, library), input=code)
        assert int(run(program)) == len(names)


def yesterdays_program(flavour, library):
    """Compiled against the released header, run with today's library."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "program"
        run("cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", RELEASED,
            RELEASED / "program.c", "-o", program, *link_options(flavour, library))
        assert run(program) == "everything is as it was\n"


def stub(layout: dict) -> str:
    """C++ with an empty body for every accepted function: that interface as a library."""
    lines = ['#include "rmsnorm.h"']
    for name, function in layout["functions"].items():
        arguments = ", ".join(f'{argument["type"]} {argument["name"]}'
                              for argument in function["arguments"])
        lines.append(f'{function["result"]} {name}({arguments}) {{ __builtin_trap(); }}')
    return "\n".join(lines) + "\n"


def no_difference(flavour):
    abidiff = find_tool("abidiff")
    library = (flavour / "librmsnorm.so").read_bytes()
    assert b"rmsnorm_forward_params_t" in library, "the library was built without types"
    options = f"--version-script={ROOT / 'src/build/rmsnorm.map'},-soname,librmsnorm.so.{abi()}"
    with tempfile.TemporaryDirectory() as folder:
        accepted = pathlib.Path(folder) / "librmsnorm.so"
        run("c++", "-g", "-shared", "-fPIC", "-w", "-I", gate.ACCEPTED, "-x", "c++", "-", "-o",
            accepted, f"-Wl,{options}", input=stub(gate.accepted_layout()))
        run(abidiff, "--headers-dir1", gate.ACCEPTED, "--headers-dir2", ROOT / "include", accepted,
            flavour / "librmsnorm.so")


def abi() -> int:
    return json.loads(gate.TODAY.read_text())["constants"][gate.VERSION]


CHECKS_OF_A_FLAVOUR = (
    ("librmsnorm.so exports the accepted symbols", golden_symbols),
    ("every function links, shared", every_function_links, "shared"),
    ("every function links, static", every_function_links, "static"),
    ("a program of the released header runs, shared", yesterdays_program, "shared"),
    ("a program of the released header runs, static", yesterdays_program, "static"),
    ("abidiff finds no difference from the accepted interface", no_difference),
)
