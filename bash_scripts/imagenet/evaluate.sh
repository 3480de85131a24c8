#!/usr/bin/env bash
# Evaluate LS-KD's ImageNet networks on GPUS GPUs (8): all that are trained, or the run folders given.
[ "$#" -gt 0 ] || set -- runs/lskd/imagenet_*/*_seed*
exec python -m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc_per_node "${GPUS:-8}" -m lsdali.evaluate "$@"
