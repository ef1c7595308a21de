"""`python -m fer_runtime` is `fer-infer`."""

from fer_runtime.cli import main

main(prog_name="fer-infer")
