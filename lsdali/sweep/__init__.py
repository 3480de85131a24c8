"""Sweeps: from one file to many runs, and from these to a paper's table (`lsdali sweep`)."""
