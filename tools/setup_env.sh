#!/usr/bin/env bash
# Install what mmkw needs: `bash tools/setup_env.sh [STACK]`. Where it is all there, nothing happens.
#
#   openmmlab   the packages of OpenMMLab, in .venv (the default)
#   onedl       their maintained fork, in .venv-fork
#
# The versions stand in requirements/tested.txt and nowhere else. A finished step
# leaves a stamp in .setup, so a run that was interrupted goes on with the step it was in. mmcv
# is compiled, where it has to be, while pip installs the rest.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly stack=${1:-openmmlab} pins=requirements/tested.txt
case $stack in
openmmlab)
    prefix='' venv=.venv mim=openmim
    packages=(mmengine mmdet mmpretrain mmsegmentation ftfy regex setuptools) ;;
onedl)
    prefix=onedl- venv=.venv-fork mim=onedl-mim
    packages=(onedl-mmengine onedl-mmdetection onedl-mmpretrain onedl-mmsegmentation ftfy regex) ;;
*)
    printf 'there is no stack %s; give openmmlab or onedl\n' "$stack" >&2 && exit 1 ;;
esac
readonly python=$venv/bin/python log=$venv/setup.log mmcv_log=$venv/mmcv.log stamps=$venv/.setup
readonly supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
key=$({ pwd && cat "$pins" pyproject.toml tools/setup_env.sh; } | cksum)
ticker= builder=
exec 3>&2 # the steps write to the log; what the user must see goes here

fail() {
    printf '\nSet-up stopped: %s\n' "$1" >&3
    exit 1
}

is_done() { # is_done FUNCTION
    [[ -f $stamps/$1 && $(<"$stamps/$1") == "$key" ]]
}

step() { # step NUMBER FUNCTION 'what it does'
    local begun=$SECONDS
    ! is_done "$2" || return 0
    mkdir -p "$stamps"
    printf '[%s/4] %s\n' "$1" "$3"
    show_life "$begun" &
    ticker=$!
    "$2" >"$log" 2>&1 || explain_failure "$1" "$2"
    stop_showing_life
    printf '%s\n' "$key" >"$stamps/$2"
    printf '      done in %d s\n' $((SECONDS - begun))
}

show_life() { # show_life BEGUN
    local files
    while sleep 30 >/dev/null 2>&1 3>&- && kill -0 $$ 2>/dev/null; do
        files=$(grep -aoE '^ *\[[0-9]+/[0-9]+\]' "$mmcv_log" 2>/dev/null | tail -n 1 | tr -d ' []') || true
        printf '      ... busy for %d s%s (log: %s)\n' \
            $((SECONDS - $1)) "${files:+, $files files of mmcv compiled}" "$log"
    done
}

stop_showing_life() {
    [[ -z $ticker ]] || kill "$ticker" 2>/dev/null || true
    ticker=
}

stop_building() {
    [[ -z $builder ]] || kill -- "-$builder" 2>/dev/null || true
    builder=
}

explain_failure() { # explain_failure NUMBER FUNCTION
    local reason='see the lines above.'
    stop_showing_life
    printf '\n%s\n(all of it: %s)\n' "$(tail -n 20 "$log")" "$log" >&3
    case "$2: $(<"$log")" in
    *'No space left on device'*)
        reason="the disk is full; $venv takes 6 GB, and pip may keep a copy of what it fetched." ;;
    *ConnectionError* | *'Max retries'* | *'timed out'*)
        reason="pip could not reach its index; check the network, the proxy and 'pip config list'." ;;
    install_mmcv:*'Killed signal'*)
        reason='the compiler ran out of memory; put MAX_JOBS=1 before the command.' ;;
    install_mmcv:*'no C++ compiler'*)
        reason='mmcv must be compiled, and there is no C++ compiler; on Debian and Ubuntu:
apt-get install g++' ;;
    install_mmcv:*'no Python.h'*)
        reason="mmcv must be compiled, and Python's headers are missing; on Debian and Ubuntu:
apt-get install python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev" ;;
    install_mmcv:*)
        [[ ${FORCE_CUDA:-0} == 0 ]] ||
            reason='mmcv does not compile for CUDA; put FORCE_CUDA=0 before the command to go without.' ;;
    esac
    fail "step $1 failed: $reason
Then type the same command again; the finished steps are kept."
}

forget_unfinished_packages() { # pip writes RECORD last; without it, the package is half-installed
    local info
    for info in "$venv"/lib/python*/site-packages/*.dist-info; do
        [[ -f $info/RECORD ]] || rm -rf "$info"
    done
}

run_pip() { # run_pip COMMAND [OPTION...]
    "$python" -m pip --disable-pip-version-check --no-input "$1" \
        --progress-bar off --constraint "$pins" "${@:2}"
}

pip_install() {
    forget_unfinished_packages
    run_pip install "$@"
}

create_venv() {
    local candidate lacks_ensurepip=
    forget_unfinished_packages
    if "$python" -m pip show pip; then
        "$python" -c "$supported" || fail "$venv holds $("$python" --version); the tested versions \
need Python 3.10 to 3.12. Move $venv away, or use it as it is with PYTHON=$python"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        "$candidate" -c "$supported" || continue
        if "$candidate" -c 'import ensurepip'; then
            rm -f "$venv"/bin/python*
            "$candidate" -m venv "$venv"
            return
        fi
        lacks_ensurepip=${lacks_ensurepip:-$candidate}
    done
    [[ -z $lacks_ensurepip ]] || fail "$lacks_ensurepip cannot make virtual environments; \
on Debian and Ubuntu: apt-get install $lacks_ensurepip-venv"
    fail "there is no Python 3.11 (nor 3.12 or 3.10) on the PATH. Install python3.11, or use an \
environment that you have with PYTHON=/path/to/python"
}

say_time() { # a file takes about 10 s of a core; the rest, 2 to 4 minutes
    local minutes=$((77 * 10 / ${MAX_JOBS:-$(nproc)} / 60 + 3))
    printf '      In all about %d minutes if mmcv has to be compiled, else 3; 6 GB.\n' $minutes
}

install_torch() {
    pip_install torch torchvision setuptools wheel ninja psutil &&
        "$python" -c 'import torch, torchvision'
}

begin_mmcv() { # in the background and in a process group of its own, to be stopped as one
    set -m
    wheel_of_mmcv >"$mmcv_log" 2>&1 3>&- &
    builder=$!
    set +m
}

wheel_of_mmcv() { # wheel_of_mmcv [PIP OPTION...]; from the index, from pip's cache, or compiled
    rm -rf "$venv/wheels"
    choose_cuda
    [[ $# != 0 ]] || ! run_pip wheel --no-deps --only-binary "${prefix}mmcv" \
        --wheel-dir "$venv/wheels" "${prefix}mmcv" || return 0
    command -v "${CXX:-c++}" || { echo 'no C++ compiler' && return 1; }
    [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
        { echo 'no Python.h' && return 1; }
    # mmcv can't leave operators out, as one file binds them all. Reading PyTorch's headers takes 7 of
    # the 9 s of a file, so -O0 saves little (8.2 s), and precompiled headers are slower (9.9 s).
    # torch looks for ninja on the PATH, and compiles one file after the other without it.
    PATH=$PWD/$venv/bin:$PATH MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        CFLAGS="${CFLAGS:-} -g0" run_pip wheel --verbose --no-deps --no-build-isolation \
        --wheel-dir "$venv/wheels" "$@" "${prefix}mmcv"
}

choose_cuda() {
    export FORCE_CUDA=${FORCE_CUDA:-$("$python" -c 'import torch
from torch.utils.cpp_extension import CUDA_HOME
print(int(torch.cuda.is_available() and CUDA_HOME is not None))')}
    # mmcv compiles for CUDA wherever torch sees a GPU, with or without nvcc.
    [[ $FORCE_CUDA == 1 ]] || export CUDA_VISIBLE_DEVICES=
}

install_mmkw() {
    pip_install --editable '.[demo,docs,test]' "${packages[@]}" &&
        # OpenCV's usual package needs a desktop's libraries; the headless one does without.
        { "$python" -c 'import cv2' || pip_install --no-deps --force-reinstall opencv-python-headless; } &&
        # Beside the other packages, as it asks for old versions of them that it can do without.
        pip_install --no-deps --upgrade --target "$venv/mim" "$mim"
}

install_mmcv() {
    choose_cuda
    wait "$builder" || { cat "$mmcv_log" && return 1; }
    builder=
    pip_install --no-deps --force-reinstall "$venv"/wheels/*.whl || return
    # pip's cache may hold operators compiled for another torch, or without CUDA.
    operators_load || { wheel_of_mmcv --no-cache-dir --no-binary "${prefix}mmcv" >"$mmcv_log" 2>&1 &&
        pip_install --no-deps --force-reinstall "$venv"/wheels/*.whl && operators_load; } ||
        { cat "$mmcv_log" && return 1; }
    rm -rf "$venv/wheels"
    "$python" -c 'import mmdet, mmpretrain'
}

operators_load() {
    "$python" -c "import sys, mmcv.ops
sys.exit($FORCE_CUDA and mmcv.ops.get_compiling_cuda_version() == 'not available')"
}

trap 'stop_showing_life; stop_building' EXIT
trap 'printf "\nInterrupted. Type the same command again to go on from here.\n" >&3; exit 130' INT TERM
is_done install_mmcv || say_time
step 1 create_venv "Python environment in $venv (seconds)"
step 2 install_torch 'torch and torchvision (1 to 2 minutes on a fast line)'
is_done install_mmcv || begin_mmcv
step 3 install_mmkw 'what mmkw, its tests and demo need, while mmcv is fetched or compiled (1 minute)'
step 4 install_mmcv 'mmcv with its operators (seconds with a wheel, minutes where it has to be compiled)'
