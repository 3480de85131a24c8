#!/usr/bin/env bash
# LS-KD's ImageNet teachers: ResNet-50, alpha 0 and 0.1, on GPUS GPUs (8).
exec python -m lsdali.sweep sweeps/lskd_imagenet.yaml --only 'imagenet_teachers/*' --processes "${GPUS:-8}" "$@"
