"""What things cost on this machine: `python -m lsdali.bench loader|resident|methods|models`."""
