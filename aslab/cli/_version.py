"""What ``aslab --version`` says. It needs no extra."""

from __future__ import annotations

from .._fastpath import COMPILED


def version() -> str:
    """The version, and which fast path is in use, in one line."""
    import importlib.metadata  # takes long to import

    try:
        number = importlib.metadata.version("aslab")
    except importlib.metadata.PackageNotFoundError:
        number = "(not installed)"
    return f"aslab {number} (fast path in {'C' if COMPILED else 'Python'})"
