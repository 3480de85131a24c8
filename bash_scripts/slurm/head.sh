#!/usr/bin/env bash
# Print the name of a Slurm job's first node, or where no such name can be resolved, the address that Slurm uses.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
if getent ahosts "$head" > /dev/null; then
  echo "$head"
else
  scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
fi
