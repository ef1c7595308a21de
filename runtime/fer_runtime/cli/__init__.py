"""The command `fer-infer`: its options, and one module for each kind of run."""
