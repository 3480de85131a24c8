"""A module that fails when it is imported."""

METHODS = {"never": 1 // 0}
