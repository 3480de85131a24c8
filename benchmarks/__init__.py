"""Scripts that made the tables in this folder: `python -m benchmarks --help`, from the root of the repository."""
