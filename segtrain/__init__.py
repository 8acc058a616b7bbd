"""segtrain: train, evaluate and use image segmentation models from YAML."""

__version__ = "0.1.0"
