"""The Python interface: what lsdali/__init__.py lists. docs/python.md shows examples."""
