"""Datasets: where image and target files lie, how they are read, transformed and put into batches."""
