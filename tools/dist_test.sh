#!/usr/bin/env bash
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500 PYTHON=python]" \
        "$0 CONFIG CHECKPOINT GPUS [ARGUMENTS OF test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
exec bash "$(dirname "${BASH_SOURCE[0]}")/_torchrun.sh" \
    "$gpus" test.py "$config" "$checkpoint" "$@"
