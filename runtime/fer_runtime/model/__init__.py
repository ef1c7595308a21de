"""Model files: finding, reading, checking, certifying and running them.

What other packages use of this room:

- `find`: names of models and of their files; `find_model`, `available_models`
- `load`: `load_model`, a file from anybody, checked and opened
- `opening`: `read_model`, such a file checked and not opened
- `session`: `open_session` for models made in this process; the only import of onnxruntime
- `onnx_file`, `metadata`, `structure`, `shapes`: a file's contents, without ONNX Runtime and the onnx package
- `certificate`, `parity`, `self_test`, `signature`: whether a file computes what was trained, and who made it
- `inspect`: a file's contents in words and as JSON
"""
