"""Values of files in the lines of errors."""


def shown(value) -> str:
    """A value for an error's line: short, and without what would steer a terminal."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
