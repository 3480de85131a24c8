"""What `import lsdali` offers to Python programs; lsdali/__init__.py lists it. docs/python.md shows it at work."""
