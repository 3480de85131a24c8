#!/usr/bin/env bash
# Train the bundled handwritten digits with cross-entropy and with Zipf's label smoothing on two processes, and compare.
set -euo pipefail
source "$(dirname "$0")/env.sh"
processes=2
gpus=$(python -c "import torch; print(torch.cuda.device_count())")
[ "$gpus" -eq 1 ] && processes=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # one thread: the number of threads decides the last bits
for method in ce zls; do
  NPROC=$processes bash bash_scripts/launch.sh train "recipes/digits/$method.yaml" "$@"
done
python -m lsdali.report runs/digits_ce runs/digits_zls
