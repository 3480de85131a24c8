"""What things cost on this machine: `python -m lsdali.bench loader|methods|models`."""
