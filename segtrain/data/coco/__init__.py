"""Datasets whose objects are listed in COCO's JSON: as single objects, and as one class per pixel."""
