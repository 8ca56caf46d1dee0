#!/usr/bin/env python3
"""The ABI gate: what today's interface may differ in from the released one.

usage: tests/abi/gate.py             says what differs; exit status 1 if anything does
       tests/abi/gate.py --accept    takes what was added into tests/abi/accepted

What was released stays as it was: constants, types, structs' fields, signatures, symbols and their
version nodes. What is removed or changed passes only where RMSNORM_ABI_VERSION is higher than that
of tests/abi/accepted. What is added has to be accepted, so that nobody adds it by mistake: --accept
writes that folder's header, layout.json and symbols.txt anew, and refuses while anything is removed
or changed. The header of tests/abi/released stays: yesterday's programs were compiled with it.
"""
import argparse
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ACCEPTED = HERE / "accepted"
HEADER = HERE.parent.parent / "include/rmsnorm.h"
TODAY = HERE.parent.parent / "bindings/layout.json"
VERSION = "RMSNORM_ABI_VERSION"
MAP = HERE.parent.parent / "src/build/rmsnorm.map"
FREE = {"RMSNORM_VERSION_MAJOR", "RMSNORM_VERSION_MINOR", "RMSNORM_VERSION_PATCH", VERSION}


def accepted_layout() -> dict:
    return json.loads((ACCEPTED / "layout.json").read_text())


def accepted_symbols() -> dict:
    """Each symbol's version node."""
    return dict(line.split("@@") for line in (ACCEPTED / "symbols.txt").read_text().split())


def node_of(symbol: str) -> str:
    """The version node that the linker's map gives to a symbol: by name, else by a wildcard."""
    text = re.sub(r"/\*.*?\*/", "", MAP.read_text(), flags=re.S)
    nodes = re.findall(r"(\w+)\s*\{(.*?)\}", text, flags=re.S)
    for pattern in (symbol, "rmsnorm_*"):
        for node, body in nodes:
            if re.search(rf"(?<![\w*]){re.escape(pattern)}\s*;", body):
                return node
    raise SystemExit(f"{symbol} is in no node of src/build/rmsnorm.map")


def may_grow(struct: dict) -> bool:
    """A struct that carries its size grows at the end; a tensor never does."""
    return struct["fields"][0]["name"] == "struct_size"


def compare_structs(name: str, old: dict, new: dict) -> tuple:
    """(what was broken, what was added)"""
    count = len(old["fields"])
    broken = [f"{name}.{was['name']}: was {was}, is {now}"
              for was, now in zip(old["fields"], new["fields"]) if was != now]
    broken += [f"{name}.{field['name']}: removed" for field in old["fields"][len(new["fields"]):]]
    added = [f"{name}.{field['name']}" for field in new["fields"][count:]]
    if any(field["offset"] < old["size"] for field in new["fields"][count:]):
        broken.append(f"{name}: a new field stands in what was padding")
    if old["size"] != new["size"] and not (added and may_grow(old) and old["size"] < new["size"]):
        broken.append(f"{name}: its size was {old['size']}, is {new['size']}")
    if new["size"] % 8:
        broken.append(f"{name}: its size {new['size']} is no multiple of 8")
    return broken, added


def compare(old: dict, new: dict) -> tuple:
    """(what was removed or changed, what was added) between two layouts"""
    old, new = ({key: value if isinstance(value, dict) else dict.fromkeys(value, "handle")
                 for key, value in layout.items()} for layout in (old, new))
    broken, added = [], []
    for kind in old:
        for name, was in old[kind].items():
            now = new.get(kind, {}).get(name)
            if now is None:
                broken.append(f"{name}: removed")
            elif kind == "structs":
                of_struct = compare_structs(name, was, now)
                broken += of_struct[0]
                added += of_struct[1]
            elif was != now and name not in FREE:
                broken.append(f"{name}: was {was}, is {now}")
    for kind in new:
        added += [name for name in new[kind] if name not in old.get(kind, {})]
    return broken, added


def differences() -> tuple:
    """(what was removed or changed, what was added) since the release; nothing counts as broken
    under a higher ABI version."""
    old, new = accepted_layout(), json.loads(TODAY.read_text())
    broken, added = compare(old, new)
    known, functions = set(accepted_symbols()), set(new["functions"])
    broken += [f"{name}: no longer declared" for name in sorted(known - functions)]
    added += [f"{name} in symbols.txt" for name in sorted(functions - known)]
    before, now = old["constants"][VERSION], new["constants"][VERSION]
    if now < before:
        return [f"{VERSION}: was {before}, is {now}"], added
    return ([] if now > before else broken), added


def accept() -> None:
    (ACCEPTED / "rmsnorm.h").write_text(HEADER.read_text())
    layout = json.loads(TODAY.read_text())
    (ACCEPTED / "layout.json").write_text(TODAY.read_text())
    (ACCEPTED / "symbols.txt").write_text("".join(
        f"{name}@@{node_of(name)}\n" for name in sorted(layout["functions"])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="take what was added as released")
    arguments = parser.parse_args()
    broken, added = differences()
    for text in broken:
        print(f"removed or changed: {text}")
    for text in added:
        print(f"added: {text}")
    if arguments.accept and not broken:
        accept()
        return 0
    return 1 if broken or added else 0


if __name__ == "__main__":
    sys.exit(main())
