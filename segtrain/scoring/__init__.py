"""What `evaluate` computes, says and writes beside a task's own scores: one file per kind of task."""
