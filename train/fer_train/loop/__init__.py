"""The training loop: trainer, distillation, EMA, weight averaging, devices and processes."""
