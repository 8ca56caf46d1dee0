# shellcheck shell=bash
# For examples/run and tests/run: finds the tools of a build and installs those that are missing.
# What PyPI has goes into a virtual environment, build/tools; apt is for the rest. Sourced from the
# repository's root. README.md, "Dependencies", says what each tool is for.

tools=$PWD/build/tools
PATH=$tools/bin:$PATH
mkdir -p build

say() { printf '%s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename "$(dirname "$0")")/$(basename "$0")" "$*" >&2
  exit 1
}

# Runs a command silently; shows the end of its output if it fails. LOG COMMAND...
quietly() {
  local log=$1
  shift
  "$@" >>"$log" 2>&1 && return
  tail -n 30 "$log" >&2
  return 1
}

# MINIMUM VERSION
at_least() { [ "$(printf '%s\n' "$1" "${2:-0}" | sort -V | head -n 1)" = "$1" ]; }

apt_install() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
  [ "$(id -u)" = 0 ] || apt=(sudo "${apt[@]}")
  command -v "${apt[0]}" >/dev/null && command -v apt-get >/dev/null ||
    die "$* is missing: install it (as root, apt-get install $*)"
  say "Installing $* with apt"
  : >"$tools-apt.log"
  # The package lists may be missing or old; where they are not, fetching them again is a waste.
  "${apt[@]}" install --no-install-recommends "$@" >"$tools-apt.log" 2>&1 ||
    { quietly "$tools-apt.log" "${apt[@]}" update &&
      quietly "$tools-apt.log" "${apt[@]}" install --no-install-recommends "$@"; } ||
    die "apt could not install $*"
}

need_venv() {
  command -v python3 >/dev/null || die "Python 3 is missing"
  # Debian's Python makes environments only with python3-venv.
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
}

# NAME: what src/build/pins/NAME.txt says, with the hashes of all that it needs. After a change of
# version: echo 'NAME==VERSION' | uv pip compile --universal --python-version 3.9 \
#   --generate-hashes --no-header --no-annotate - -o src/build/pins/NAME.txt
pip_install() {
  local pins=src/build/pins/$1.txt
  need_venv
  if [ ! -x "$tools/bin/pip" ]; then
    quietly "$tools-pip.log" python3 -m venv --clear "$tools" || die "python3 -m venv failed"
  fi
  "$tools/bin/pip" show --quiet "$1" 2>/dev/null || say "Installing $1 from PyPI"
  quietly "$tools-pip.log" "$tools/bin/pip" install --disable-pip-version-check --require-hashes \
    -r "$pins" || die "pip could not install $1"
}

need_compiler() {
  command -v "${CXX:-c++}" >/dev/null || die "a C++ compiler is missing (Debian's is g++)"
}

need_cmake() {
  at_least 3.25 "$(cmake --version 2>/dev/null | sed -n '1s/.* //p')" || pip_install cmake
  command -v ninja >/dev/null || pip_install ninja
}

need_nvcc() {
  local nvcc version
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc)" /usr/local/cuda/bin/nvcc; do
    [ -x "$nvcc" ] || continue
    version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    if at_least 12.4 "$version"; then
      export CUDACXX=$nvcc
      return
    fi
  done
  pip_install cuda-toolkit # with nvcc, cudart, cccl, nvvm and crt
  local toolkit
  toolkit=$(echo "$tools"/lib/python3*/site-packages/nvidia/cu13)
  ln -sfn lib "$toolkit/lib64" # where nvcc and CMake look for the runtime
  export CUDACXX=$toolkit/bin/nvcc
}

# Rust for the crates; Debian 12's own is too old.
need_rust() {
  PATH=$PATH:$HOME/.cargo/bin
  at_least 1.81 "$(cargo --version 2>/dev/null | cut -d ' ' -f 2)" ||
    apt_install cargo-web rustc-web
}

has_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi -L >/dev/null 2>&1; }

# The architectures of this machine's GPUs, as CMake wants them.
gpu_architectures() {
  local found
  found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    grep -E '^[0-9]+\.[0-9]$' | tr -d . | sort -u | paste -sd ';')
  echo "${found:-native}"
}

# Configures and builds. FOLDER CMAKE_OPTION...
build() {
  local folder=$1 launchers=()
  shift
  ! command -v ccache >/dev/null ||
    launchers=(-DCMAKE_{C,CXX,CUDA}_COMPILER_LAUNCHER=ccache)
  say "Building $folder"
  : >"$folder.log"
  quietly "$folder.log" cmake -G Ninja -S . -B "$folder" "${launchers[@]}" "$@" &&
    quietly "$folder.log" cmake --build "$folder" -j "$(nproc)" ||
    die "$folder could not be built; $folder.log has all that was said"
}
