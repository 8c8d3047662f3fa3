"""Questions, their runs (a line of JSON each), and the tables and pictures made from the lines."""
