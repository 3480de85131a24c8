"""Shared parts of methods: class matrices, random draws, Zipf's and other distributions, auxiliary heads."""
