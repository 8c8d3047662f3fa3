"""Grids of runs, each a line of JSON that is kept, and the tables made from them."""
