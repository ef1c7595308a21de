"""The maintainers' laboratory: studies behind the figures, in no wheel and not in `make test`."""
