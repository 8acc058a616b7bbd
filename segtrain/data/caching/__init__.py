"""Decoded samples, kept on disk or in memory, so that each image file is read and decoded once."""
