"""Latency of models and engines in processes that take turns, and the roofline."""
