"""Feature extractors: image in, features shallow to deep out."""
