"""Numbers that are written as digits and nothing else: ids, ports, CPUs, error numbers."""

_DIGITS_MAX = 20


def parse_digits(text: str) -> int | None:
    """Return the number that ASCII digits say, None for any other text; more digits than a number of the kernel has are
    none either: Python refuses to read thousands of them, with an error that is not for people."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None
