"""The raw data sets: which files make a case, and how their labels are read."""
