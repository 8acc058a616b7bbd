"""Losses that ignore unlabelled pixels exactly."""
