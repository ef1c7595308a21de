"""`python -m fer_export`, the same as `fer-export`."""

from fer_export.cli import main

main()
