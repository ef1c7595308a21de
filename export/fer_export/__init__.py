"""Export of trained networks to ONNX, with the proof that nothing changed on the way."""
