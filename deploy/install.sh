#!/bin/sh
# Makes .venv with everything that make's targets need: with uv where there is one, else with Python's own venv and pip.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "$*" >&2
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; none was found. Set PYTHON to one, or install uv, which brings its own."
}

if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || uv venv --quiet --python "${PYTHON:->=3.11}" .venv
    echo "installing into .venv with uv"
    uv pip install --quiet --python .venv/bin/python --editable '.[dev]'
else
    python=$(find_python)
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"
        "$python" -m venv .venv || fail "$python -m venv failed; its message is above."
    fi
    echo "installing into .venv with pip: a minute or two"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
fi
touch .venv/.installed
