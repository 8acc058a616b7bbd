"""What refines a network's probabilities with the image itself."""
