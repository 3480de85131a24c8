"""Compare runs: a table in the terminal, or one HTML page with learning curves (`lsdali report`)."""

from lsdali.report.command import main

__all__ = ["main"]
