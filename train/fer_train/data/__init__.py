"""Labelled images: read from folders, audited, deduplicated, augmented and mixed."""
