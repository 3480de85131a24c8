#!/usr/bin/env bash
# LS-KD's ImageNet students: ResNet-18 and ResNet-50, T 1, 2, 3, 64, both teachers (trained first if need be), on GPUS GPUs (8).
exec python -m lsdali.sweep sweeps/lskd_imagenet.yaml --processes "${GPUS:-8}" "$@"
