"""Network architectures, their registry and the weights they start from."""
