#!/usr/bin/env bash
# Run the image on every GPU of this node, with what NCCL and DALI need: bash_scripts/docker_run.sh VERB [arguments]
#   DATA=/data/imagenet bash_scripts/docker_run.sh train recipes/imagenet_zls.yaml data.root=/data
# Several nodes, the same on each: NNODES=2 HEAD=node1 DATA=... bash_scripts/docker_run.sh train ...
# Variables: those of launch.sh, and
#   IMAGE      default lsdali
#   DATA       folder that the container reads as /data; nothing if left out
#   RUNS       folder for runs, default ./runs; CACHE for the index and decoded images, default ./cache
#   RESTART    Docker's restart policy, for example on-failure:3; the container then goes on in the background
#   OPTIONS    further options of docker run, for example --memory=400g
# Files belong to the user who calls it. A signal to this script reaches the processes; docker stop waits for a save.
set -euo pipefail
runs=$(realpath -m "${RUNS:-runs}") cache=$(realpath -m "${CACHE:-cache}")
mkdir -p "$runs" "$cache"
options=(
  --init --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 --user "$(id -u):$(id -g)"
  --stop-timeout "$((${GRACE:-120} + 20))"
  --volume "$runs:/lsdali/runs" --volume "$cache:/lsdali/cache"
)
if [ -n "${DATA:-}" ]; then options+=(--volume "$(realpath "$DATA"):/data:ro"); fi
if command -v nvidia-smi > /dev/null; then options+=(--gpus all); fi
if [ -d /dev/infiniband ]; then options+=(--device /dev/infiniband); fi
if [ -n "${RESTART:-}" ]; then options+=(--detach --restart "$RESTART"); else options+=(--rm); fi
if [ -n "${SLURM_JOB_ID:-}" ]; then # found by launch.sh where it runs outside a container
  NNODES=${NNODES:-$SLURM_STEP_NUM_NODES}
  PORT=${PORT:-$((15000 + SLURM_JOB_ID % 15000))}
  JOB=${JOB:-$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}}
fi
if [ "${NNODES:-1}" != 1 ]; then options+=(--network host); fi
for name in NPROC NNODES HEAD PORT JOB RESTARTS GRACE ADDRESS SLURM_NODEID OMP_NUM_THREADS \
  NCCL_SOCKET_IFNAME NCCL_IB_HCA NCCL_DEBUG GLOO_SOCKET_IFNAME; do
  if [ -n "${!name:-}" ]; then options+=(--env "$name=${!name}"); fi
done
read -r -a further <<< "${OPTIONS:-}"
exec docker run "${options[@]}" "${further[@]}" "${IMAGE:-lsdali}" "$@"
