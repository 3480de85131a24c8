#!/usr/bin/env bash
# LS-KD's CUB students: five networks, T 1, 2, 3, 64, both teachers (trained first if need be), on GPUS GPUs (1).
exec python -m lsdali.sweep sweeps/lskd_cub.yaml --processes "${GPUS:-1}" "$@"
