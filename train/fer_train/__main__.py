"""`python -m fer_train`, which is what `torchrun -m fer_train` starts."""

from fer_train.cli import main

main(prog_name="fer-train")
