#!/usr/bin/env bash
# LS-KD's CUB teachers: ResNet-50 from the ImageNet teachers of the same alpha (trained first if need be), on GPUS GPUs (1).
exec python -m lsdali.sweep sweeps/lskd_cub.yaml --only 'cub_teachers/*' --processes "${GPUS:-1}" "$@"
