"""Tests. The number of threads decides the last bits of a sum, so it is set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
