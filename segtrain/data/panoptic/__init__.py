"""Datasets with one segment per pixel."""
