"""Names that others chose (a hub's listing, an index of shards, a word of the command line), joined below a folder.

Needs nothing but Python itself: the launcher uses it before the converter's packages are there."""

import pathlib
import re
import unicodedata

from . import ConversionError

# Linux's limits are 255 bytes for a part and 4096 for a path, which our folder begins.
_PART_BYTES = 255
_NAME_BYTES = 1000
# Devices of Windows, whatever ending follows: a models folder may lie on a share.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def below(folder: pathlib.Path, name: str, *, deep: bool = False, follow_links: bool = False) -> pathlib.Path:
    """`folder`/`name`, certain to lie in the folder. `deep` allows folders in the name, parted by "/". Symbolic links
    may leave the folder with `follow_links` only: to read what the user has put there (the hub's own cache is a folder
    of links). Raises ConversionError naming the name and what is wrong with it."""
    problem = _problem(name, deep)
    if problem:
        shown = printable(name if len(name) <= 80 else name[:77] + "...")
        raise ConversionError(f"{shown!r} is no name of a file in {folder}: {problem}")
    path = folder / name
    try:
        outside = not follow_links and not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links that lead to each other
        raise ConversionError(f"{path}: its symbolic links lead nowhere") from error
    if outside:
        raise ConversionError(f"{path}: a symbolic link leads out of {folder}")
    return path


def _problem(name: str, deep: bool) -> str | None:
    if not name:
        return "it is empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not Unicode text"
    if size > _NAME_BYTES:
        return f"it has {size} bytes, at most {_NAME_BYTES} are allowed"
    if any(_is_control(char) for char in name):
        return "it has a control character"
    if "\\" in name or ":" in name:
        return "it has a backslash or a colon"
    if "/" in name and not deep:
        return "it has a slash"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "it is absolute, or has an empty part, . or .."
        if part[-1] in ". ":
            return "a part ends in a dot or a space"
        if _DEVICES.fullmatch(part):
            return f"{part} is a device's name"
        if len(part.encode()) > _PART_BYTES:
            return f"a part has {len(part.encode())} bytes, at most {_PART_BYTES} are allowed"
    return None


def printable(text: str) -> str:
    """The text with characters that would steer a terminal written as \\x1b and the like; line ends stay."""
    return "".join(
        char if char == "\n" or not _is_control(char) else char.encode("unicode_escape").decode() for char in text
    )


def _is_control(char: str) -> bool:
    # Control, format (which turn the direction of writing, or show nothing), lone surrogates.
    return unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\u200c\u200d"  # joiners are letters' own
