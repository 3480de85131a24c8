"""Evaluate trained runs: metrics, temperature scaling, ensembles, reliability (`python -m lsdali.evaluate`)."""
