#!/usr/bin/env bash
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500 PYTHON=python]" \
        "$0 CONFIG GPUS [ARGUMENTS OF train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
exec bash "$(dirname "${BASH_SOURCE[0]}")/_torchrun.sh" "$gpus" train.py "$config" "$@"
