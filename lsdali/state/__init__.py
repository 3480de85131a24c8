"""Saved state of a run: named parts, each owned by the object that knows it."""
