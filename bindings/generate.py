#!/usr/bin/env python3
"""Writes what the bindings know of include/rmsnorm.h, from clang's reading of it:

  bindings/layout.json            sizes, offsets, constants and signatures, for anyone
  bindings/python/rmsnorm/_abi.py ctypes structures, constants and functions
  bindings/julia/src/abi.jl       the same for Julia

The three are checked in, so that no user needs clang. Run this after the header has changed.

usage: bindings/generate.py [--check]
  --check  writes nothing; prints the first difference, if any, and exits with 1
"""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
from typing import Dict, List, NamedTuple, Optional, Tuple

HERE = pathlib.Path(__file__).resolve().parent
HEADER = HERE.parent / "include" / "rmsnorm.h"
WIDTH = 100

# ---- What the header says ------------------------------------------------------------------------


class Scalar(NamedTuple):
    size: int
    ctypes: str
    julia: str


# The only types that the header may build upon.
SCALARS = {
    "int32_t": Scalar(4, "ctypes.c_int32", "Int32"),
    "uint32_t": Scalar(4, "ctypes.c_uint32", "UInt32"),
    "int64_t": Scalar(8, "ctypes.c_int64", "Int64"),
    "size_t": Scalar(8, "ctypes.c_size_t", "Csize_t"),
    "double": Scalar(8, "ctypes.c_double", "Cdouble"),
    "char": Scalar(1, "ctypes.c_char", "UInt8"),
}


class Constant(NamedTuple):
    name: str
    value: int
    comment: str


class Field(NamedTuple):
    name: str
    type: str
    offset: int
    size: int
    comment: str


class Struct(NamedTuple):
    name: str
    size: int
    fields: List[Field]
    comment: str


class Function(NamedTuple):
    """A function, or the type of a pointer to one."""
    name: str
    result: str
    arguments: List[Tuple[str, str]]  # name ("" in a pointer's type), type
    comment: str


class Group(NamedTuple):
    """The constants of one enum, or of the macros."""
    constants: List[Constant]
    comment: str


class Interface(NamedTuple):
    groups: List[Group]
    typedefs: Dict[str, str]  # integers by another name
    handles: List[str]
    callbacks: List[Function]
    structs: List[Struct]
    functions: List[Function]

    def constants(self) -> Dict[str, int]:
        return {c.name: c.value for group in self.groups for c in group.constants}


def clang(*arguments: str, source: Optional[str] = None) -> str:
    program = shutil.which("clang-14") or shutil.which("clang")
    if program is None:
        sys.exit("generate.py: there is no clang")
    command = [program, "-x", "c", "-std=c99", "-I", str(HEADER.parent), *arguments]
    done = subprocess.run([*command, str(HEADER) if source is None else "-"], input=source,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"generate.py: clang refused the header:\n{done.stderr}")
    return done.stdout


def comment_of(node: dict, text: str) -> str:
    """The comment that stands at a declaration, as plain lines."""
    found = next((n for n in node.get("inner", []) if n["kind"] == "FullComment"), None)
    if found is None:
        return ""
    begin = found["range"]["begin"]["offset"]
    inside = text[begin:text.index("*/", begin)]
    if inside.startswith(" ----"):  # the line above a section, then its text, are one to clang
        begin = text.index("/*", begin) + 2
        inside = text[begin:text.index("*/", begin)]
    inside = inside.encode("latin-1").decode()
    lines = [re.sub(r"^\s*\*? ?", "", line).rstrip() for line in inside.split("\n")]
    return "\n".join(lines).strip("\n").rstrip()


def read_header() -> Interface:
    text = HEADER.read_text(encoding="latin-1")  # a character a byte: clang's offsets are bytes
    tree = json.loads(clang("-Xclang", "-ast-dump=json", "-fparse-all-comments", "-fsyntax-only"))
    macros = re.findall(r"^#define (RMSNORM_\w+) (\d+)$", text, flags=re.M)
    found = Interface([Group([Constant(name, int(value), "") for name, value in macros], "")],
                      {}, [], [], [], [])
    structs: Dict[str, Struct] = {}
    before = ""  # the comment at the typedef before, of which an enum has the values
    for node in tree["inner"]:
        kind, name, comment = node["kind"], node.get("name", ""), comment_of(node, text)
        if kind == "EnumDecl" and "RMSNORM_" in json.dumps(node):
            found.groups.append(Group([read_constant(inner, text) for inner in node["inner"]
                                       if inner["kind"] == "EnumConstantDecl"],
                                      comment or before))
        before = ""
        if not name.startswith("rmsnorm_"):
            continue
        if kind == "RecordDecl" and node.get("completeDefinition"):
            structs[name] = read_struct(node, comment, text, found, structs)
        elif kind == "RecordDecl":
            found.handles.append(name)
        elif kind == "TypedefDecl":
            aliased = node["type"]["qualType"]
            if "(*)" in aliased:
                found.callbacks.append(read_callback(name, aliased, comment))
            elif aliased in SCALARS:
                found.typedefs[name], before = aliased, comment
            elif aliased != f"struct {name}":
                sys.exit(f"generate.py: {name} is a typedef of {aliased}: what is that?")
        elif kind == "FunctionDecl":
            arguments = [(inner["name"], inner["type"]["qualType"])
                         for inner in node.get("inner", []) if inner["kind"] == "ParmVarDecl"]
            result = node["type"]["qualType"].split("(")[0].strip()
            found.functions.append(Function(name, result, arguments, comment))
    found.structs.extend(structs.values())
    verify(found)
    return found


def read_constant(node: dict, text: str) -> Constant:
    value = next((inner["value"] for inner in node.get("inner", [])
                  if inner["kind"] == "ConstantExpr"), None)
    if value is None:
        sys.exit(f"generate.py: {node['name']} has no value of its own")
    return Constant(node["name"], int(value), comment_of(node, text))


def read_callback(name: str, type_: str, comment: str) -> Function:
    result, arguments = type_.split("(*)")
    types = arguments.strip()[1:-1].split(", ")
    return Function(name, result.strip(), [("", each) for each in types], comment)


def split_array(type_: str) -> Tuple[str, int]:
    """'char[32]' as ('char', 32); 0 for what is no array."""
    match = re.fullmatch(r"(\w+)\s*\[(\d+)\]", type_)
    return (match[1], int(match[2])) if match else (type_, 0)


def read_struct(node: dict, comment: str, text: str, found: Interface,
                structs: Dict[str, Struct]) -> Struct:
    """A struct laid out as C does on 64-bit machines; verify() asks the compiler."""
    fields, offset, widest = [], 0, 1
    for inner in node["inner"]:
        if inner["kind"] != "FieldDecl":
            continue
        type_ = inner["type"]["qualType"]
        element, count = split_array(type_)
        element = found.typedefs.get(element, element)
        if element in SCALARS:
            size = alignment = SCALARS[element].size
        elif element in structs:
            size, alignment = structs[element].size, 8
        elif pointer_to(type_) or type_ in {each.name for each in found.callbacks}:
            size = alignment = 8
        else:
            where = f"{node['name']}.{inner['name']}"
            sys.exit(f"generate.py: {where} is of type {type_}: what is that?")
        offset = -(-offset // alignment) * alignment
        size *= count or 1
        fields.append(Field(inner["name"], type_, offset, size, comment_of(inner, text)))
        offset, widest = offset + size, max(widest, alignment)
    return Struct(node["name"], -(-offset // widest) * widest, fields, comment)


def verify(found: Interface) -> None:
    """The compiler's word on every constant, size and offset."""
    checks = [f"{name} == {value}" for name, value in found.constants().items()]
    for struct in found.structs:
        checks.append(f"sizeof({struct.name}) == {struct.size}")
        checks += [f"offsetof({struct.name}, {field.name}) == {field.offset}"
                   for field in struct.fields]
    clang("-fsyntax-only", "-Wno-c11-extensions", source="#include <rmsnorm.h>\n" + "".join(
        f'_Static_assert({check}, "");\n' for check in checks))


# ---- layout.json ---------------------------------------------------------------------------------


def signature(function: Function, names: bool) -> dict:
    arguments = [{"name": name, "type": type_} if names else {"type": type_}
                 for name, type_ in function.arguments]
    return {"result": function.result, "arguments": arguments}


def layout(found: Interface) -> str:
    return json.dumps({
        "constants": found.constants(),
        "typedefs": found.typedefs,
        "handles": found.handles,
        "callbacks": {each.name: signature(each, names=False) for each in found.callbacks},
        "structs": {each.name: {"size": each.size, "fields": [
            {"name": f.name, "type": f.type, "offset": f.offset, "size": f.size}
            for f in each.fields]} for each in found.structs},
        "functions": {each.name: signature(each, names=True) for each in found.functions},
    }, indent=1) + "\n"


# ---- What the two languages share ----------------------------------------------------------------


def short(name: str) -> str:
    """RMSNORM_DTYPE_F32 as DTYPE_F32, rmsnorm_forward as forward."""
    return re.sub(r"^(rmsnorm|RMSNORM)_", "", name)


def camel(name: str) -> str:
    """rmsnorm_forward_params_t as ForwardParams."""
    return "".join(word.capitalize() for word in short(name)[:-len("_t")].split("_"))


def filled(text: str, width: int) -> List[str]:
    """A comment's lines, filled anew; what is indented, and 'Errors:', keeps lines of its own."""
    lines, paragraph = [], []
    for line in [*text.split("\n"), ""] if text else []:
        if paragraph and (not line or line.startswith((" ", "Errors: "))):
            lines += textwrap.wrap(" ".join(paragraph), width)
            paragraph = []
        if not line or line.startswith(" "):
            lines.append(line)
        else:
            paragraph.append(line)
    return lines[:-1]


def as_comment(text: str, indent: str = "") -> List[str]:
    return [f"{indent}# {line}".rstrip() for line in filled(text, WIDTH - len(indent) - 2)]


def in_items(head: str, items: List[str], tail: str, indent: int) -> List[str]:
    """head, items with commas between, tail; broken between items where it is too long."""
    lines = [head]
    for i, item in enumerate(items):
        item += tail if i == len(items) - 1 else ","
        if len(lines[-1]) + 1 + len(item) > WIDTH:
            lines.append(" " * indent + item)
        else:
            lines[-1] += ("" if lines[-1].endswith("(") else " ") + item
    return lines


def with_comment(line: str, text: str) -> List[str]:
    """A line with its comment behind it, or above where that would be too long."""
    if not text:
        return [line]
    if "\n" not in text and len(line) + 4 + len(text) <= WIDTH:
        return [f"{line}  # {text}"]
    indent = line[:len(line) - len(line.lstrip())]
    return [*as_comment(text, indent), line]


def constants_of(found: Interface) -> List[str]:
    lines = []
    for group in found.groups:
        lines += ["", *as_comment(group.comment)]
        for name, value, comment in group.constants:
            written = hex(value) if name.startswith("RMSNORM_DTYPE") else str(value)
            lines += with_comment(f"{short(name)} = {written}", comment)
    return lines


def call(head: str, words: List[str]) -> List[str]:
    return in_items(f"{head}(", words, ")", len(head) + 1)


def pointer_to(type_: str) -> Optional[str]:
    """'const rmsnorm_input_t *' as 'rmsnorm_input_t'; None for what is no pointer."""
    if not type_.endswith("*"):
        return None
    return type_[:-1].replace("const ", "").strip()


# ---- Python --------------------------------------------------------------------------------------


def python_type(type_: str, found: Interface) -> str:
    if type_ == "void":
        return "None"
    element, count = split_array(type_)
    element = found.typedefs.get(element, element)
    if element in SCALARS:
        return SCALARS[element].ctypes + (f" * {count}" if count else "")
    target = pointer_to(type_)
    if target is None:
        return camel(type_)  # a struct by value, a callback
    if target == "char":
        return "ctypes.c_char_p"
    if target == "void" or target in found.handles:
        return "ctypes.c_void_p"
    return f"ctypes.POINTER({python_type(target, found)})"


def python_types(function: Function, found: Interface) -> List[str]:
    """Of its result and arguments."""
    types = [function.result, *(type_ for _, type_ in function.arguments)]
    return [python_type(type_, found) for type_ in types]


def python_struct(struct: Struct, found: Interface) -> List[str]:
    sized = struct.fields[0].name == "struct_size"
    lines = ["", "", f"class {camel(struct.name)}({'_Sized' if sized else 'ctypes.Structure'}):"]
    if struct.comment:
        body = filled(struct.comment, WIDTH - len('    """'))
        first = [f'    """{body[0]}'] if body[0][0] != " " else ['    """', f"    {body[0]}"]
        lines += [*first, *(f"    {line}".rstrip() for line in body[1:]), '    """']
    lines += ["    _fields_ = ["]
    for field in struct.fields:
        lines += with_comment(f'        ("{field.name}", {python_type(field.type, found)}),',
                              field.comment)
    return [*lines, "    ]"]


def python(found: Interface) -> str:
    lines = ['"""The C interface of librmsnorm in ctypes: constants, structures, functions.',
             "", "Generated by bindings/generate.py from include/rmsnorm.h, which is the manual.",
             '"""', "import ctypes", "from typing import Any"]
    lines += constants_of(found)
    for each in found.callbacks:
        types = python_types(each, found)
        lines += ["", *as_comment(each.comment)]
        lines += call(f"{camel(each.name)} = ctypes.CFUNCTYPE", types)
    lines += ["", "", "class _Sized(ctypes.Structure):",
              '    """A structure whose first field, struct_size, is filled in."""', "",
              "    def __init__(self, **fields: Any) -> None:",
              "        super().__init__(ctypes.sizeof(self), **fields)"]
    for struct in found.structs:
        lines += python_struct(struct, found)
    lines += ["", "", "# The size of each structure in C, and where its fields stand.",
              "LAYOUT = {"]
    for struct in found.structs:
        lines += [f"    {camel(struct.name)}: ({struct.size}, {{"]
        lines += in_items(" " * 7, [f'"{field.name}": {field.offset}' for field in struct.fields],
                          "", 8)
        lines += ["    }),"]
    lines += ["}", "", "", "class Functions:",
              '    """A loaded library: its functions without their prefix, with their types."""',
              "",
              "    def __init__(self, library: ctypes.CDLL) -> None:",
              "        def bind(name: str, result: Any, *arguments: Any) -> Any:",
              "            function = getattr(library, name)",
              "            function.restype, function.argtypes = result, arguments",
              "            return function"]
    for each in found.functions:
        types = python_types(each, found)
        names = ", ".join(name for name, _ in each.arguments)
        lines += ["", *as_comment(each.comment, " " * 8), f"        # ({names})"]
        lines += call(f"        self.{short(each.name)} = bind", [f'"{each.name}"', *types])
    return "\n".join(lines) + "\n"


# ---- Julia ---------------------------------------------------------------------------------------


def julia_type(type_: str, found: Interface, argument: bool = False) -> str:
    """argument: of a function, which takes Ref(value) for a pointer to a value."""
    if type_ == "void":
        return "Cvoid"
    element, count = split_array(type_)
    element = found.typedefs.get(element, element)
    if element in SCALARS:
        return f"NTuple{{{count}, UInt8}}" if count else SCALARS[element].julia
    if type_ == "const char *":
        return "Cstring"
    target = pointer_to(type_)
    if target is None:
        return "Ptr{Cvoid}" if type_ in {c.name for c in found.callbacks} else camel(type_)
    if target == "char":
        return "Ptr{UInt8}"
    if not argument or target == "void" or target in found.handles:
        return "Ptr{Cvoid}"
    return f"Ref{{{julia_type(target, found)}}}"


def julia_constants(found: Interface) -> List[str]:
    unsigned = re.compile(r"(CONTEXT|FLAG)_\w+ =")  # they go into uint32_t fields
    lines = []
    for line in constants_of(found):
        match = re.match(r"(\w+) = (\w+)(.*)", line)
        if match is None:
            lines.append(line)
            continue
        type_ = "UInt32" if unsigned.match(line) else "Int32"
        lines += with_comment(f"const {match[1]} = {type_}({match[2]})",
                              match[3].strip().lstrip("# "))
    return lines


def julia_struct(struct: Struct, found: Interface) -> List[str]:
    name = camel(struct.name)
    lines = ["", *as_comment(struct.comment), f"struct {name}"]
    for field in struct.fields:
        lines += with_comment(f"    {field.name}::{julia_type(field.type, found)}", field.comment)
    lines += ["end"]
    zeros = []
    for field in struct.fields:
        type_ = julia_type(field.type, found)
        if field.name == "struct_size":
            zeros.append(f"sizeof({name})")
        elif type_ == "Ptr{Cvoid}":
            zeros.append("C_NULL")
        elif type_.startswith("NTuple"):
            zeros.append(f"ntuple(_ -> 0x00, {split_array(field.type)[1]})")
        else:
            zeros.append(f"{type_}()" if type_ in map(camel, (s.name for s in found.structs))
                         else "0")
    return lines + call(f"{name}() = {name}", zeros)


def julia(found: Interface) -> str:
    lines = ["# The C interface of librmsnorm: constants, structs of its layout, functions.",
             "# Generated by bindings/generate.py from include/rmsnorm.h, which is the manual.",
             "# X() is the struct X with nothing in it but its struct_size, where it has one.",
             "using Libdl"]
    lines += julia_constants(found)
    for each in found.callbacks:
        types = [julia_type(type_, found) for _, type_ in each.arguments]
        text = f"{each.comment}\n@cfunction(..., {julia_type(each.result, found)}, " \
               f"({', '.join(types)}))".lstrip("\n")
        lines += ["", *as_comment(f"{camel(each.name)}. {text}")]
    for struct in found.structs:
        lines += julia_struct(struct, found)
    lines += ["", "# Throws where a struct of this file is not laid out as in C.",
              "function check_layout()", "    for (type, size, offsets) in ("]
    for struct in found.structs:
        lines += in_items(f"        ({camel(struct.name)}, {struct.size}, (",
                          [str(field.offset) for field in struct.fields], ")),", 12)
    lines += ["    )",
              "        sizeof(type) == size && all(fieldoffset(type, i) == offset",
              "                                    for (i, offset) in enumerate(offsets)) ||",
              '            error("rmsnorm: $type is not laid out as in C")',
              "    end", "end", "",
              "# The addresses of a loaded library's functions.", "struct Functions"]
    lines += [f"    {short(each.name)}::Ptr{{Cvoid}}" for each in found.functions]
    lines += ["end", "",
              "# Resolves every function of a library opened by dlopen; refuses another ABI's.",
              "function Functions(library::Ptr{Cvoid})", "    check_layout()",
              "    version = dlsym(library, :rmsnorm_abi_version; throw_error=false)",
              '    version === nothing && error("rmsnorm: the library has no rmsnorm_abi_version")',
              "    abi = ccall(version, Int32, ())", "    abi == ABI_VERSION ||",
              '        error("rmsnorm: the library has ABI $abi, these bindings ABI $ABI_VERSION")',
              "    return Functions("]
    lines += [f"        dlsym(library, :{each.name})," for each in found.functions]
    lines += ["    )", "end"]
    for each in found.functions:
        names = [name for name, _ in each.arguments]
        types = [julia_type(type_, found, argument=True) for _, type_ in each.arguments]
        tuple_ = f"({', '.join(types)}{',' if len(types) == 1 else ''})"
        lines += ["", *as_comment(each.comment)]
        lines += call(short(each.name), ["f::Functions", *names])
        lines[-1] += " ="
        lines += call("    ccall", [f"f.{short(each.name)}", julia_type(each.result, found),
                                    tuple_, *names])
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------


def first_difference(path: pathlib.Path, wanted: str) -> Optional[str]:
    name = path.relative_to(HERE.parent)
    if not path.exists():
        return f"{name} is missing"
    lines, wanted_lines = path.read_text().split("\n"), wanted.split("\n")
    for number, (line, other) in enumerate(zip(lines, wanted_lines), start=1):
        if line != other:
            return f"{name}:{number}:\n  it has     {line}\n  should have {other}"
    if len(lines) != len(wanted_lines):
        return f"{name} has {len(lines)} lines, should have {len(wanted_lines)}"
    return None


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__.strip())
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    found = read_header()
    for path, text in ((HERE / "layout.json", layout(found)),
                       (HERE / "python" / "rmsnorm" / "_abi.py", python(found)),
                       (HERE / "julia" / "src" / "abi.jl", julia(found))):
        if sys.argv[1:]:
            difference = first_difference(path, text)
            if difference:
                print(f"{difference}\nbindings/generate.py writes it anew")
                return 1
        else:
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
