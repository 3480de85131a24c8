"""What things cost on this machine, and whether its data are the same everywhere: `python -m lsdali.bench --help`."""
