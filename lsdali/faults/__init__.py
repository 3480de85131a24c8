"""Handling of signals, and of processes of a run that die or hang."""
