#!/usr/bin/env bash
# LS-KD's CUB teachers: ResNet-50 from the ImageNet teachers of the same alpha, on GPUS GPUs (1). What is not there is trained
# first; bash_scripts/imagenet/train_teacher.sh does so for the ImageNet teachers, on more GPUs.
exec python -m lsdali.sweep sweeps/lskd_cub.yaml --only 'cub_teachers/*' --processes "${GPUS:-1}" "$@"
