"""`fer-data`, also as `python -m fer_train.data`."""

try:
    from fer_train.data.cli import main
except KeyboardInterrupt:
    # As click ends a command: Ctrl-C in the first moments prints no traceback either.
    raise SystemExit("\nAborted!") from None

if __name__ == "__main__":
    main(prog_name="fer-data")
