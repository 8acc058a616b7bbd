"""What a loss, a prediction and a score mean for a kind of task."""
