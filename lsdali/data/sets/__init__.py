"""The data sets that a recipe can name: which samples and labels each has."""
