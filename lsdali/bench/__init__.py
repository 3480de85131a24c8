"""What things cost on this machine: `python -m lsdali.bench loader|resident|stream|methods|models`."""
