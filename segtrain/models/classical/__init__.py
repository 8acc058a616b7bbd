"""Segmentation without training: what a network must beat to be worth its parameters."""
