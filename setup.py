"""What pyproject.toml cannot say: the compiled fast path, and the example scenarios inside of the package."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path("aslab/_fastpath")
PURE = os.environ.get("ASLAB_PURE") == "1" or sys.implementation.name != "cpython"


class BuildExtension(build_ext):
    """Builds the fast path if it can: without a compiler the package is pure Python, which is slower and complete."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as exc:
            print(f"aslab: the fast path in C was not built, the one in Python is used: {exc}", file=sys.stderr)


class BuildPython(build_py):
    """Puts the scenarios of examples/ beside the lab; an editable install finds them in examples/."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "aslab/lab/scenarios_of_examples")
            shutil.copytree("examples/scenarios", place, dirs_exist_ok=True)


core = Extension(
    "aslab._fastpath._core",
    sources=sorted(map(str, HERE.glob("*.c"))),
    depends=sorted(map(str, HERE.glob("*.h"))),
    extra_compile_args=["-O3"],
    optional=True,
)
setup(
    ext_modules=[] if PURE or not core.sources else [core],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
