"""The scenarios that come with aslab: ``examples/scenarios``, which an installed package contains."""

from __future__ import annotations

from pathlib import Path

from ..._errors import ConfigError

_PLACES = (
    Path(__file__).parents[1] / "scenarios_of_examples",
    Path(__file__).parents[3] / "examples" / "scenarios",
)


def builtin() -> dict[str, Path]:
    """Their files, by name, sorted."""
    for place in _PLACES:
        found = {path.stem: path for path in sorted(place.glob("*.toml"))}
        if found:
            return found
    return {}


def find(name: str) -> Path:
    """The file at that path, or else the built-in scenario of that name.

    :raises ConfigError: if there is neither
    """
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    scenarios = builtin()
    if name not in scenarios:
        raise ConfigError("scenario", name, f"it must be a file, or one of {', '.join(scenarios)}")
    return scenarios[name]
