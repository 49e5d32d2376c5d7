# Sourced by the scripts beside it: makes .venv with the pinned versions, once, and puts it on PATH.
# Usage: setup EXTRAS, such as setup "" or setup "[dev]". PYTHON names another interpreter (3.11 or newer), VENV another folder.
set -eu
cd "$(dirname "$0")/.."

setup() {
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "Python 3.11 or newer is needed; '$python' is not. Set PYTHON=/path/to/python3.11" >&2
        exit 2
    }
    venv=${VENV:-.venv}
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    PATH="$PWD/$venv/bin:$PATH"
    export PATH PIP_DISABLE_PIP_VERSION_CHECK=1
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    stamp=$venv/opdscope-installed$1
    if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
        echo "installing opdscope$1 into $venv (about 2 GB on a CPU-only machine)"
        torch=$(grep '^torch==' constraints.txt)
        have=$(python -m pip show torch 2>/dev/null | sed -n 's/^Version: //p')
        [ "torch==${have%+*}" = "$torch" ] || install_torch "$torch"
        python -m pip install -q -c constraints.txt -e ".$1"
        printf '%s' "$wanted" >"$stamp"
    fi
}

# Without an NVIDIA GPU a CPU build is taken where one is to be had: a local version of pip's own indexes,
# else the CPU index that uv knows; the plain release is the last resort.
install_torch() {
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        python -m pip install -q -c constraints.txt "$1+cpu" 2>/dev/null && return
        python -m pip install -q uv && UV_HTTP_TIMEOUT=60 UV_HTTP_RETRIES=0 python -m uv pip install -q \
            --python "$venv/bin/python" -c constraints.txt --torch-backend=cpu "$1" 2>/dev/null && return
    fi
    python -m pip install -q -c constraints.txt "$1"
}
