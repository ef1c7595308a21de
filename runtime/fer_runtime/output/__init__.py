"""What a run writes: rows, annotated copies and contact sheets."""
