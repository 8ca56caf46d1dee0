"""Checks of what the library takes from its surroundings: functions of the system, environment
variables, files, sockets; and of what its build takes from PyPI."""
import pathlib
import re
import sys
import tempfile

from checks import ROOT, Skip, check, expect_none, find_tool, has_cuda, run
from released import link_options, RELEASED

# All that the library's own objects call of the C library.
SYSTEM = {
    "memory": "malloc calloc free memcpy memmove memset memcmp",
    "text": "snprintf vsnprintf strcmp strlen strspn __snprintf_chk __vsnprintf_chk __memcpy_chk "
            "__memset_chk",
    "numbers, exact in every C library": "fma fmaf sqrt sqrtf",
    "the process and the machine": "getenv getpid sysconf",
    "threads": " ".join(f"pthread_{name}" for name in (
        "attr_destroy attr_init attr_setstacksize cond_broadcast cond_init cond_signal cond_wait "
        "create join mutex_init mutex_lock mutex_unlock sigmask").split()) + " sigfillset",
    "the compiler's": "__tls_get_addr _GLOBAL_OFFSET_TABLE_ __stack_chk_fail atexit "
                      "__cxa_atexit __dso_handle",
}
# The runtime, which is inside; and what nvcc puts for the host in place of a device function's
# body.
CUDA = re.compile(r"(__)?cuda[A-Z]\w*|exit")
# glibc's sysconf, in rmsnorm_device_info: the number of processors, on ARM also the caches.
SYSTEM_FILES = re.compile(r"/sys/devices/system/cpu/.*|/proc/(stat|meminfo|cpuinfo)")
LOADER_FILES = re.compile(r".*\.so(\.[\d.]+)?|/etc/ld\.so\.\w+")


@check("supply: what PyPI gives is pinned with hashes")
def pinned():
    files = [*sorted((ROOT / "src/build/pins").glob("*.txt")),
             ROOT / "tests/python/requirements.txt"]
    bad, names = [], set()
    for path in files:
        for line in re.split(r"(?<!\\)\n", path.read_text().strip()):
            match = re.match(r"([\w.-]+)==[\w.]+( ;.*)? \\\n +--hash=sha256:[0-9a-f]{64}", line)
            if not match:
                bad.append(f"{path.name}: {line.splitlines()[0]}")
            else:
                names.add(match[0].split()[0])
    expect_none(bad, "not pinned with a hash:")
    build = re.search(r"requires = \[(.*?)\]", (ROOT / "pyproject.toml").read_text())[1]
    wanted = re.findall(r'"(.*?)"', build)
    wanted += re.findall(r"^[\w.-]+==[\w.]+", (ROOT / "tests/python/requirements.in").read_text(),
                         flags=re.M)
    expect_none([name for name in wanted if name.replace("_", "-") not in names],
                "not in tests/python/requirements.txt:")


@check("supply: scripts install nothing from PyPI without hashes")
def no_loose_installs():
    bad = []
    for path in (*ROOT.glob("*/run"), *ROOT.glob("*/*/run"), *(ROOT / "src/build").glob("*.sh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\bpip\b.*\binstall\b(?! the| -)", line) and not re.search(
                    r"--require-hashes|--no-deps|pip = \[|could not", line):
                bad.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    expect_none(bad, "installs without --require-hashes:")


LOCKS = {str(path.parent.relative_to(ROOT)): path for folder in ("bindings", "examples", "tests")
         for path in sorted((ROOT / folder).rglob("Cargo.lock"))}


@check("supply: what crates.io gives is pinned with hashes")
def crates_pinned():
    bad = []
    for path in LOCKS.values():
        for package in path.read_text().split("[[package]]")[1:]:
            fields = dict(re.findall(r'^(\w+) = "(.*)"$', package, flags=re.M))
            if "source" in fields and not (
                    fields["source"] == "registry+https://github.com/rust-lang/crates.io-index"
                    and re.fullmatch(r"[0-9a-f]{64}", fields.get("checksum", ""))):
                bad.append(f"{path.relative_to(ROOT)}: {fields['name']}")
    expect_none(bad, "not of crates.io, or without a checksum:")
    assert len(LOCKS) >= 4, "the check sees no Cargo.lock"
    loose = [f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
             for path in (*ROOT.glob("*/run"), *ROOT.glob("*/*/run"))
             for number, line in enumerate(path.read_text().splitlines(), 1)
             if re.search(r'"cargo", .*"(build|run|test|check|clippy|doc)"|(^|\s)cargo build ',
                          line) and "locked" not in line and "OUTSIDE" not in line]
    expect_none(loose, "cargo without --locked:")


@check("supply: the crates need no libclang to be built")
def no_libclang():
    """bindgen runs when the bindings are made, in a crate of its own."""
    with_clang = [name for name, path in LOCKS.items()
                  if re.search(r'^name = "(bindgen|clang-sys)"$', path.read_text(), flags=re.M)]
    assert with_clang == ["bindings/rust/generate"], with_clang


@check("supply: README lists each dependency with its licence")
def listed():
    table = (ROOT / "README.md").read_text().split("\n## Dependencies\n")[1].split("\n## ")[0]
    rows = [line.lower() for line in table.splitlines() if line.startswith("|")]
    names = re.findall(r"^([\w.-]+)==", (ROOT / "tests/python/requirements.in").read_text(),
                       flags=re.M)
    names += [path.stem for path in (ROOT / "src/build/pins").glob("*.txt")]
    for path in LOCKS.values():
        text = (path.parent / "Cargo.toml").read_text()
        text += "".join(member.read_text() for member in path.parent.glob("rmsnorm*/Cargo.toml"))
        for section in re.findall(r"^\[(?:workspace\.|build-|dev-)?dependencies\]\n(.*?)(?=^\[|\Z)",
                                  text, flags=re.M | re.S):
            names += re.findall(r"^([\w-]+)(?:\.workspace)? =", section, flags=re.M)
    names = {name.lower() for name in names if not name.startswith("rmsnorm")}
    assert {"numpy", "half", "cmake"} <= names, f"the check sees {names} alone"
    expect_none(sorted(name for name in names if not any(
        re.search(rf"(?<![\w-]){re.escape(name).replace('_', '[_-]')}(?![\w-])",
                  row.replace("cuda toolkit", "cuda-toolkit")) for row in rows)),
                "not in README.md's table of dependencies:")


# ---- Per flavour ---------------------------------------------------------------------------------

def imports(flavour):
    """By the objects' own symbols, so that what is linked in beside them does not hide it."""
    folder = flavour / "CMakeFiles/rmsnorm_objects.dir/src"
    defined, wanted = set(), {}
    for path in sorted(folder.rglob("*.o")):
        for line in run("nm", path).splitlines():
            kind, name = line.split()[-2:]
            if kind in "Uw":
                wanted.setdefault(name, path.name)
            else:
                defined.add(name)
    allowed = {name for names in SYSTEM.values() for name in names.split()}
    cuda = CUDA if has_cuda(flavour) else re.compile("(?!)")
    expect_none(sorted(f"{name} ({path})" for name, path in wanted.items()
                       if name not in defined | allowed and not cuda.fullmatch(name)),
                "called, but not on the list of tests/abi/supply.py:")
    assert "getenv" in wanted and "malloc" in wanted, "the check sees nothing"


def program(flavour, library: str, folder: str) -> pathlib.Path:
    """One that calls every function of the interface."""
    path = pathlib.Path(folder) / "program"
    run("cc", "-std=c99", "-I", RELEASED, RELEASED / "program.c", "-o", path,
        *link_options(flavour, library))
    return path


def files_and_sockets(flavour):
    strace = find_tool("strace")
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "strace.log"
        run(strace, "-f", "-o", log, "-e", "trace=%file,%network,%process",
            program(flavour, "static", folder))  # so that the loader looks for little
        calls = re.findall(r"^\d+ +(\w+)\((.*)$", log.read_text(), flags=re.M)
    assert any(name == "execve" for name, _ in calls), "strace saw nothing"
    bad = []
    for name, arguments in calls[1:]:  # the first is the program's own start
        path = re.search(r'"(.*?)"', arguments)
        if name in ("exit_group", "arch_prctl", "exit", "set_tid_address"):
            continue
        if path is None or path[1] == "":
            allowed = name in ("newfstatat", "fstat", "fstatat64")
        else:
            allowed = bool(LOADER_FILES.fullmatch(path[1]) or SYSTEM_FILES.fullmatch(path[1]))
            allowed = allowed and name in ("openat", "open", "access", "readlink", "newfstatat",
                                           "stat", "faccessat", "faccessat2")
            allowed = allowed and not re.search(r"O_(WRONLY|RDWR|CREAT)", arguments)
        if not allowed:
            bad.append(f"{name}({arguments}")
    expect_none(bad, "a program that calls every function has made these calls of the system:")


def environment(flavour):
    """By a getenv in front of the C library's."""
    shim = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
char *getenv(const char *name) {
  fprintf(stderr, "getenv %s\\n", name);
  return ((char *(*)(const char *))dlsym(RTLD_NEXT, "getenv"))(name);
}
char *secure_getenv(const char *name) { return getenv(name); }
"""
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "shim.so"
        run("cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library, "-ldl", input=shim)
        said = run(program(flavour, "shared", folder), env={"LD_PRELOAD": str(library)})
    found = set(re.findall(r"^getenv (.*)$", said, flags=re.M))
    assert found == {"RMSNORM_CPU_ISA"}, found


def another_runtime(flavour):
    """A CUDA runtime of the process's own, of whatever version, is not what the library calls."""
    if not has_cuda(flavour):
        raise Skip("built without CUDA")
    calls = sorted({name for path in (flavour / "CMakeFiles/rmsnorm_objects.dir/src").rglob("*.o")
                    for name in re.findall(r" U ((?:__)?cuda[A-Z]\w*)$", run("nm", path),
                                           flags=re.M)})
    assert "cudaGetDeviceCount" in calls, "the check sees nothing"
    wrong = "".join(["#include <stdlib.h>\n",
                     *(f"void {name}(void) {{ abort(); }}\n" for name in calls)])
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "libcudart.so.13"
        run("cc", "-shared", "-fPIC", "-fno-builtin", "-x", "c", "-", "-o", library, input=wrong)
        code = ("import ctypes\n"
                f"ctypes.CDLL({str(library)!r}, ctypes.RTLD_GLOBAL)\n"
                f"library = ctypes.CDLL({str(flavour / 'librmsnorm.so')!r})\n"
                "count = ctypes.c_int32(-1)\n"
                "print(library.rmsnorm_device_count(2, ctypes.byref(count)), count.value >= 0)")
        assert run(sys.executable, "-c", code, env={"LD_PRELOAD": str(library)}) == "0 True\n"


CHECKS_OF_A_FLAVOUR = (
    ("calls what is on the list of the system's functions alone", imports),
    ("opens no file and no socket, starts no process", files_and_sockets),
    ("reads no environment variable but RMSNORM_CPU_ISA", environment),
    ("calls its own CUDA runtime, whichever else is loaded", another_runtime),
)
