"""What `python -m segtrain benchmark` measures: each topic against naive references in the same run."""
