"""`fer-export`, also as `python -m fer_export`."""

try:
    from fer_export.cli import main
except KeyboardInterrupt:
    # As click ends a command: Ctrl-C in the first moments prints no traceback either.
    raise SystemExit("\nAborted!") from None

if __name__ == "__main__":
    main(prog_name="fer-export")
