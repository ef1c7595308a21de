"""int8 models: calibration ranges, GPTQ rounding and the quantized graph."""
