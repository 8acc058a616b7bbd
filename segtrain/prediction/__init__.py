"""What `predict` does with files: find them, read ahead, ask the network, write, and know what is done."""
