"""``python -m aslab`` is the command ``aslab``."""

from .cli import main

if __name__ == "__main__":
    main()
