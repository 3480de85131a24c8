#!/usr/bin/env bash
# Start lsdali on one node or several, with what torchrun needs. Run it once on each node.
usage='usage: bash_scripts/launch.sh VERB [arguments]
  train, evaluate     under torchrun, on every GPU of the node (without a GPU: one process)
  any other verb      as `lsdali VERB` does
Examples:
  bash_scripts/launch.sh train recipes/imagenet_zls.yaml data.root=/data/imagenet
  NNODES=2 HEAD=node1 bash_scripts/launch.sh train recipes/imagenet_zls.yaml   # the same on both nodes
Variables (in Slurm, NNODES, HEAD, PORT and JOB are found):
  NPROC      processes on this node; default: its GPUs, else 1
  NNODES     nodes; default 1; 1:2 goes on with one of two while the other is away (HEAD must stay)
  HEAD       name or address of the first node, which the others reach
  ADDRESS    address of this node for the others, where its name does not lead there
  PORT       its port for the rendezvous; default 29400
  JOB        a name that all nodes share and no other run on that port uses; default lsdali
  RESTARTS   how often torchrun starts lost workers again, in place; default 1
  GRACE      seconds that workers have to save after a signal, before SIGKILL; default 120
  PYTHON     default python
  OMP_NUM_THREADS, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME and all others that torch and NCCL read are passed on'
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
verb=${1:-help}
case $verb in
  help | -h | --help) echo "$usage"; exec "$python" -m lsdali --help ;;
  train | evaluate) shift ;;
  *) exec "$python" -m lsdali "$@" ;;
esac
case " $* " in *' --help '* | *' -h '* | *' --print '* | *' --schema '*) exec "$python" -m lsdali "$verb" "$@" ;; esac

# A mistake in the recipe is one sentence here, before torchrun starts anything.
if [ "$verb" = train ]; then "$python" -m lsdali train --print "$@" > /dev/null; fi

nodes=${NNODES:-${SLURM_STEP_NUM_NODES:-1}}
read -r processes gpus threads < <("$python" - "${NPROC:-}" << 'END'
import sys
import torch
from lsdali.limits import cpu_cores
gpus = torch.cuda.device_count()
processes = int(sys.argv[1] or gpus or 1)
print(processes, gpus, min(cpu_cores(processes), 8))
END
)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}

# USR1 and USR2 would end torchrun at once and leave its workers running. An older torchrun ignores PET_ names that it
# does not know.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE:-120}
# Workers that are started again must not meet the addresses that dead ones left in torchrun's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
arguments=(--nproc-per-node "$processes" --max-restarts "${RESTARTS:-1}" --rdzv-backend c10d)
numa=(/sys/devices/system/node/node[0-9]*)
if [ "$gpus" -gt 0 ] && [ "${#numa[@]}" -gt 1 ] && "$python" -c 'import torch.numa.binding' 2> /dev/null; then
  arguments+=(--numa-binding node)
fi
if [ "$nodes" = 1 ]; then
  # Nothing of a single node listens on its network: rendezvous through a file, all else on the loopback.
  file=$(mktemp)
  exec 8<> "$file"
  rm "$file"
  export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
  arguments+=(--nnodes 1 --rdzv-endpoint /proc/self/fd/8 --rdzv-conf store_type=file --local-addr 127.0.0.1)
else
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    HEAD=${HEAD:-$(bash "$here/slurm/head.sh")}
    PORT=${PORT:-$((15000 + SLURM_JOB_ID % 15000))}  # below the ports that the kernel hands out
    JOB=${JOB:-$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}}
    host=$([ "${SLURM_NODEID:-0}" = 0 ] && echo true || echo false)
  fi
  : "${HEAD:?error: $nodes nodes need HEAD, the name or address of the first one}"
  if [ -z "${host:-}" ]; then # torchrun takes an address for its own only if the node's name leads to it
    host=$("$python" - "$HEAD" << 'END'
import socket
import sys
try:
    family, _, _, _, place = socket.getaddrinfo(sys.argv[1], 0, type=socket.SOCK_STREAM)[0]
except OSError as error:
    sys.exit(f"error: HEAD={sys.argv[1]} leads to no address: {error.strerror}")
try:
    socket.socket(family).bind(place)
    print("true")
except OSError:
    print("false")
END
    )
  fi
  arguments+=(--nnodes "$nodes" --rdzv-endpoint "$HEAD:${PORT:-29400}" --rdzv-id "${JOB:-lsdali}")
  arguments+=(--rdzv-conf "is_host=$host")
  if [ -n "${ADDRESS:-}" ]; then arguments+=(--local-addr "$ADDRESS"); fi
fi
exec "$python" -m torch.distributed.run "${arguments[@]}" -m lsdali "$verb" "$@"
