"""A file of boards: one JSON line each, with the machine, its self-tests and its latencies."""
