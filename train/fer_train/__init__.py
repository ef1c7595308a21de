"""Training of the expression networks in PyTorch, and the making of their data."""
