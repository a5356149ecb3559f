# Sourced by the other scripts: `prepare EXTRA` makes .venv with the pinned packages, or returns at once if it is made.

die() {
  echo "edgedistill: $1" >&2
  exit "${2:-5}"
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

# What would fail minutes later is said now.
check_machine() {
  [ -n "$1" ] || die "expected Python 3.11 or newer, found none; install it, or name one as PYTHON=/path/to/python3"
  "$1" -c 'import ensurepip, venv' 2>/dev/null || die "expected Python's venv module, found none for $1; install python3-venv"
  if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    die "expected a C++ compiler to build llama.cpp with, found none; install g++ or clang"
  fi
}

# $1: an extra of pyproject.toml, or nothing.
prepare() {
  local python stamp wanted
  stamp=".venv/.installed${1:+-$1}"
  wanted="$(cat pyproject.toml scripts/constraints.txt | cksum) $PWD"
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
  else
    python="$(find_python)"
    check_machine "$python"
    echo "making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv || die "could not make .venv with $python"
  fi
  echo "installing the pinned packages; the first time llama.cpp is compiled, which takes minutes" >&2
  CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -c scripts/constraints.txt -e ".${1:+[$1]}" ||
    die "pip could not install the packages, for the reason above; with no network, set PIP_FIND_LINKS to a folder of wheels"
  echo "$wanted" >"$stamp"
}
