#!/usr/bin/env bash
# LS-KD's CUB students: five networks, T 1, 2, 3, 64, both teachers, on GPUS GPUs (1). What is not there is trained first;
# bash_scripts/imagenet/train_teacher.sh does so for the ImageNet teachers, on more GPUs.
exec python -m lsdali.sweep sweeps/lskd_cub.yaml --processes "${GPUS:-1}" "$@"
