"""Networks: image in, `{"out": logits}` out."""
