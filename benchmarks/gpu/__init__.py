"""One session on a GPU, in the order that teaches most: `python -m benchmarks.gpu IMAGES --out FOLDER`."""
