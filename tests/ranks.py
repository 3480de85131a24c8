"""A group of processes for tests: `on_ranks` of conftest.py runs a check on each."""

from lsdali.testing.ranks import OnRanks, Ranks, rank_environment

__all__ = ["OnRanks", "Ranks", "rank_environment"]
