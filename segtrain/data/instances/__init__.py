"""Datasets of single objects, one mask each."""
