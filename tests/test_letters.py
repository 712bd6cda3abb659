"""The debug letters: which are allowed, and what ASLAB_DEBUG chooses for a cache."""

from __future__ import annotations

import pytest

from aslab import ConfigError
from aslab._letters import Selection


@pytest.mark.parametrize(
    ("text", "name", "asked", "letters"),
    [
        ("", "frames", "", ""),
        ("", "frames", "UZ", "ZU"),
        ("FZ", "frames", "", "FZ"),
        ("pz", "frames", "ZF", "FZP"),
        ("-", "frames", "FZ", ""),
        ("FZ,frames,tiles*", "frames", "", "FZ"),
        ("FZ,frames,tiles*", "tiles-small", "", "FZ"),
        ("FZ,frames,tiles*", "frames2", "U", "U"),
        (",frames", "frames", "", "FZPU"),
        ("F;Z", "frames", "", "Z"),  # the last of those for all
        ("F;Z,frames;P,fr*", "frames", "", "Z"),  # the first that names it
        ("FZ;-,index", "index", "P", ""),
        ("FZ;-,index", "frames", "", "FZ"),
        ("FZ;", "frames", "", "FZ"),  # an empty block is none
        (" ; ", "frames", "U", "U"),
        (" fz , frames , tiles* ;", "frames", "", "FZ"),
        ("FZ, frames, tiles*", "tiles-small", "", "FZ"),
    ],
)
def test_a_selection_is_read_as_slub_reads_it(text: str, name: str, asked: str, letters: str) -> None:
    assert Selection(text).of(name, asked) == letters


@pytest.mark.parametrize("text", ["1", "FZX", "F-", "FZ,", "FZ,,a", "FZ frames"])
def test_a_wrong_selection_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"ASLAB_DEBUG: .* is not allowed; it must be letters of FZPUTV"):
        Selection(text)
