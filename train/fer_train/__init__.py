"""Training of the expression networks in PyTorch, and the audit of their data."""
