#!/usr/bin/env bash
# Train in several processes: one a GPU, or on the CPU where there is no GPU.
# On several nodes, run this on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set. PYTHON chooses the interpreter.
set -e

if [[ $# -lt 2 || $2 == -* ]]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] $0 CONFIG PROCESSES_PER_NODE" \
        "[flags of tools/train.py]" >&2
    exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" \
    --master_port "${PORT:-29500}" \
    --nproc_per_node "$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
