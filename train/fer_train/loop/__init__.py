"""The training loop: trainer, distillation, EMA, devices and processes."""
