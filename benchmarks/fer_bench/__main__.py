"""`python -m fer_bench` is `fer-bench`."""

from fer_bench.cli import main

main(prog_name="fer-bench")
