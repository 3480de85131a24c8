"""What several methods use: class matrices, random draws, Zipf's and other distributions, auxiliary heads."""
