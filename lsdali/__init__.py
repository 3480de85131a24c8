"""lsdali: train image classifiers with soft targets, from NVIDIA DALI loaders to resumable DDP runs."""

__version__ = "0.2.0"
