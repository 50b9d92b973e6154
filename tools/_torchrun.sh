#!/usr/bin/env bash
# _torchrun.sh GPUS SCRIPT [ARGS...]: what dist_train.sh and dist_test.sh have in common.
# One process per GPU of this machine runs the script. On several machines, start it on each with
# the same NNODES, MASTER_ADDR (the first machine) and PORT, and with NODE_RANK 0, 1, ...
set -euo pipefail

gpus=$1
script=$2
shift 2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$root/tools/$script" "$@" --launcher pytorch
