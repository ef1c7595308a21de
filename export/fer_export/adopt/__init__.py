"""Somebody else's ONNX classifier as a model of ours: `fer-export --adopt FILE`.

- `inputs`: what its network takes
- `read`: the file, checked and rewritten
- `publish`: its files through the gate
"""
