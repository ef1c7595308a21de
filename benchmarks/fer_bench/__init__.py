"""Measurements of what ships: latency, accuracy and robustness."""
