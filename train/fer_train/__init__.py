"""Training of the expression networks in PyTorch, and what surrounds it: audit, averages, ablation."""
