"""Measure loader, training steps and data stream on this machine: `python -m lsdali.bench --help`."""
