"""What a model must pass before it is published: parity, accuracy, timing and calibration."""
