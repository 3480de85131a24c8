"""One module per family of networks; each ends with the dict of its names."""
