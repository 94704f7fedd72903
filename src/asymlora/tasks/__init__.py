"""What can be trained: each task is its data, its model and its metric, one file and one row of a table."""
