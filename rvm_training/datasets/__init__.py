"""The folder layouts of public datasets: one file a dataset, which refuses a folder that is not or not all of it."""
