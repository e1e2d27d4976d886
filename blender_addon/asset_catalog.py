# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalog "Kinesplat" in the catalog file of an asset library, beside whatever else that file says."""

import re
from pathlib import Path

FILE_NAME = "blender_assets.cats.txt"
NAME = "Kinesplat"
UUID = "6f0d4b5e-6c0e-4c6b-9d0a-3e1f5a7c2b94"  # in files of many people: never to be changed

_NEW_FILE = """\
# This is an Asset Catalog Definition file for Blender.
#
# Empty lines and lines starting with `#` will be ignored.
# The first non-ignored line should be the version indicator.
# Other lines are of the format "UUID:catalog/path/for/assets:simple catalog name"

VERSION 1

"""
_LINE = re.compile(r"\s*([0-9a-fA-F-]{36})\s*:([^:]*):?")


def ensure(library: Path) -> str:
    """See that the library has the catalog, and return its UUID: that of the one that has this name, if there is one.

    A line is added to the catalog file; no other is changed. A file of a version that is not known is left alone.

    Raises:
        OSError: the file cannot be read or written.
    """
    path = library / FILE_NAME
    line = f"{UUID}:{NAME}:{NAME}"
    try:
        with open(path, "x", encoding="utf-8", newline="\n") as file:
            file.write(f"{_NEW_FILE}{line}\n")
        return UUID
    except FileExistsError:
        content = path.read_bytes()
    lines = content.decode("utf-8", "replace").splitlines()
    meant = [one for one in lines if one.strip() and not one.lstrip().startswith("#")]
    if content.strip() and (not meant or meant[0].split() != ["VERSION", "1"]):
        return UUID
    known = {match[1].lower(): match[2].strip().strip("/") for match in map(_LINE.match, meant) if match}
    if UUID in known:
        return UUID
    for uuid, catalog_path in known.items():
        if catalog_path == NAME:
            return uuid
    newline = b"\r\n" if b"\r\n" in content else b"\n"
    added = b"" if not content or content.endswith(b"\n") else newline
    added += line.encode() + newline if content.strip() else f"VERSION 1\n\n{line}\n".encode()
    with open(path, "ab") as file:  # appended: whatever happens, the other lines stay, as do owner and rights
        file.write(added)
    return UUID
