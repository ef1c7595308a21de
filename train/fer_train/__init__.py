"""Training of the two expression networks in PyTorch."""
