#!/usr/bin/env bash
# Install what mmkw needs into .venv: `bash tools/setup_env.sh`. Where it is all there, nothing happens.
#
# The versions stand in requirements/tested.txt and nowhere else. A finished step leaves a stamp in
# .venv/.setup, so a run that was interrupted goes on with the step it was in.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly python=.venv/bin/python log=.venv/setup.log stamps=.venv/.setup pins=requirements/tested.txt
readonly supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
key=$({ pwd && cat "$pins" requirements.txt setup.cfg tools/setup_env.sh; } | cksum)
ticker=
exec 3>&2 # the steps write to the log; what the user must see goes here

fail() {
    printf '\nSet-up stopped: %s\n' "$1" >&3
    exit 1
}

step() { # step NUMBER FUNCTION 'what it does'
    local stamp=$stamps/$2 begun=$SECONDS
    [[ ! -f $stamp || $(<"$stamp") != "$key" ]] || return 0
    mkdir -p "$stamps"
    printf '[%s/4] %s\n' "$1" "$3"
    show_life "$begun" &
    ticker=$!
    "$2" >"$log" 2>&1 || explain_failure "$1" "$2"
    stop_showing_life
    printf '%s\n' "$key" >"$stamp"
    printf '      done in %d s\n' $((SECONDS - begun))
}

show_life() { # show_life BEGUN
    local files
    while sleep 30 >/dev/null 2>&1 3>&- && kill -0 $$ 2>/dev/null; do
        files=$(grep -aoE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 | tr -d ' []') || true
        printf '      ... busy for %d s%s (log: %s)\n' \
            $((SECONDS - $1)) "${files:+, $files files compiled}" "$log"
    done
}

stop_showing_life() {
    [[ -z $ticker ]] || kill "$ticker" 2>/dev/null || true
    ticker=
}

explain_failure() { # explain_failure NUMBER FUNCTION
    local reason='see the lines above.'
    stop_showing_life
    printf '\n%s\n(all of it: %s)\n' "$(tail -n 20 "$log")" "$log" >&3
    case "$2: $(<"$log")" in
    *'No space left on device'*)
        reason='the disk is full; .venv takes 6 GB, and pip may keep a copy of what it fetched.' ;;
    *ConnectionError* | *'Max retries'* | *'timed out'*)
        reason="pip could not reach its index; check the network, the proxy and 'pip config list'." ;;
    install_mmcv:*'Killed signal'*)
        reason='the compiler ran out of memory; put MAX_JOBS=1 before the command.' ;;
    install_mmcv:*)
        [[ ${FORCE_CUDA:-0} == 0 ]] ||
            reason='mmcv does not compile for CUDA; put FORCE_CUDA=0 before the command to go without.' ;;
    esac
    fail "step $1 failed: $reason
Then type the same command again; the finished steps are kept."
}

forget_unfinished_packages() { # pip writes RECORD last; without it, the package is half-installed
    local info
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [[ -f $info/RECORD ]] || rm -rf "$info"
    done
}

pip_install() {
    forget_unfinished_packages
    "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --constraint "$pins" "$@"
}

create_venv() {
    local candidate lacks_ensurepip=
    forget_unfinished_packages
    if "$python" -m pip show pip; then
        "$python" -c "$supported" || fail ".venv holds $("$python" --version); the tested versions \
need Python 3.10 to 3.12. Move .venv away, or use it as it is with PYTHON=$python"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        "$candidate" -c "$supported" || continue
        if "$candidate" -c 'import ensurepip'; then
            rm -f .venv/bin/python*
            "$candidate" -m venv .venv
            return
        fi
        lacks_ensurepip=${lacks_ensurepip:-$candidate}
    done
    [[ -z $lacks_ensurepip ]] || fail "$lacks_ensurepip cannot make virtual environments; \
on Debian and Ubuntu: apt-get install $lacks_ensurepip-venv"
    fail "there is no Python 3.11 (nor 3.12 or 3.10) on the PATH. Install python3.11, or use an \
environment that you have with PYTHON=/path/to/python"
}

install_torch() {
    pip_install torch torchvision setuptools wheel ninja psutil &&
        "$python" -c 'import torch, torchvision'
}

install_mmcv() {
    export FORCE_CUDA=${FORCE_CUDA:-$("$python" -c 'import torch
from torch.utils.cpp_extension import CUDA_HOME
print(int(torch.cuda.is_available() and CUDA_HOME is not None))')}
    # mmcv compiles for CUDA wherever torch sees a GPU, with or without nvcc.
    [[ $FORCE_CUDA == 1 ]] || export CUDA_VISIBLE_DEVICES=
    pip_install --only-binary mmcv mmcv || compile_mmcv || return
    # OpenCV's usual package needs a desktop's libraries; the headless one does without.
    "$python" -c 'import cv2' || pip_install --no-deps --force-reinstall opencv-python-headless || return
    # pip's cache may hold operators compiled for another torch, or without CUDA.
    operators_load ||
        { compile_mmcv --no-cache-dir --no-binary mmcv --no-deps --force-reinstall && operators_load; }
}

compile_mmcv() { # compile_mmcv [PIP OPTION...]
    local headers
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v "${CXX:-c++}" || fail 'mmcv must be compiled, and there is no C++ compiler; on Debian and
Ubuntu: apt-get install g++'
    [[ -f $headers/Python.h ]] || fail "mmcv must be compiled, and $headers/Python.h is missing; on \
Debian and Ubuntu: apt-get install $(basename "$headers")-dev"
    printf '      no wheel on the index: compiling, 6 to 10 minutes on two cores and longer for CUDA,
      or seconds where pip has kept what it compiled before\n' >&3
    # torch looks for ninja on the PATH, and compiles one file after the other without it.
    PATH=$PWD/.venv/bin:$PATH MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} CFLAGS="${CFLAGS:-} -g0" \
        pip_install --verbose --no-build-isolation "$@" mmcv
}

operators_load() {
    "$python" -c "import sys, mmcv.ops
sys.exit($FORCE_CUDA and mmcv.ops.get_compiling_cuda_version() == 'not available')"
}

install_mmkw() {
    pip_install --editable '.[demo,docs,test]' && pip_install --no-deps openmim &&
        "$python" -c 'import mim, mmdet, mmpretrain'
}

trap stop_showing_life EXIT
trap 'printf "\nInterrupted. Type the same command again to go on from here.\n" >&3; exit 130' INT TERM
step 1 create_venv 'Python environment in .venv (seconds)'
step 2 install_torch 'torch and torchvision (5 GB; 1 to 2 minutes on a fast line)'
step 3 install_mmcv 'mmcv with its operators (seconds with a wheel, minutes where it has to be compiled)'
step 4 install_mmkw 'mmengine, mmdet, mmpretrain, what tests and demo need, and mmkw itself (1 minute)'
