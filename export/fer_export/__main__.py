"""`python -m fer_export` is `fer-export`."""

from fer_export.cli import main

main(prog_name="fer-export")
