"""What identifies a set of files: names and sizes. Only the standard library: commands import it as they start."""

import hashlib
from collections.abc import Iterable


def fingerprint_of(names_and_sizes: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of names and sizes in their order, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, size in names_and_sizes:
        digest.update(file_name_bytes(f"{name}\0{size}\n"))
    return digest.hexdigest()


def file_name_bytes(text: str) -> bytes:
    """Return a file name's bytes, which may be of no encoding."""
    return text.encode("utf-8", "surrogateescape")
