"""Escape untrusted text for where it is shown: a terminal, a CSV file, an HTML, SVG or Markdown page.

Names of files, models, labels and producers, and the messages of libraries that quote them, come from people we do
not know. Every place that shows such text passes it through one of these functions. JSON is the exception: its own
escapes are enough, and they keep the text exact.
"""

from __future__ import annotations

# Unicode general categories: control characters, format characters (among them those that reverse the direction of
# text), lone surrogates, line and paragraph separators.
_UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
# Format characters that words of Persian, Hindi and others, and emoji, are spelled with.
_JOINERS = "\u200c\u200d"

# Spreadsheets run a cell that begins with one of these as a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r")


def printable(text: object, *, limit: int | None = None) -> str:
    """`text` on one line, without anything that a terminal obeys: escape sequences appear as `\\x1b`.

    Args:
        text: the text; anything else is turned into text first.
        limit: longer text is cut to this many characters, with an ellipsis at its end.
    """
    text = str(text)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    import unicodedata  # most text of a run is ASCII

    return "".join(
        character
        if character in _JOINERS or unicodedata.category(character) not in _UNPRINTABLE
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def printable_lines(text: object) -> str:
    """`text` on the lines that it has, each `printable`: for tables and reports of several lines."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def csv_text(text: str) -> str:
    """`printable` text for a CSV cell. A text that a spreadsheet would run as a formula gets a leading `'`."""
    text = printable(text)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def html_text(text: object) -> str:
    """`printable` text for the content or a quoted attribute of HTML or SVG."""
    from html import escape  # its table of entities takes 10 ms to load, and few commands write HTML

    return escape(printable(text), quote=True)


def markdown_text(text: object, *, limit: int | None = None) -> str:
    """`printable` text for a cell or line of Markdown: no further cell, link, code or HTML element begins in it."""
    text = printable(text, limit=limit).replace("&", "&amp;").replace("<", "&lt;")
    # A backslash before one of them would be read as the escape, and ours as an ordinary backslash.
    return "".join(f"\\{character}" if character in "\\|[`" else character for character in text)


def counted(count: int, noun: str) -> str:
    """`count` and `noun`, in the plural where there is not exactly one: "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
