"""A package outside of lsdali, as another project would have it."""

__version__ = "0.3"
