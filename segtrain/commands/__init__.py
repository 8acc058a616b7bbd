"""One short `run(cfg, folder)` per command of the door."""
