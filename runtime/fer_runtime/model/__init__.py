"""The contract of a model file: where it is found, read, certified and run."""
