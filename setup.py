"""Adds the types of logstep.py to what is built; all else is in pyproject.toml.

A type checker skips a single installed module, unless a package of stubs stands beside it (PEP 561). A stub may have
bodies, so the module is its own stub.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStubs(build_py):
    """Copies logstep.py as logstep-stubs/__init__.pyi too."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there, the source is what a type checker reads
            stub = Path(self.build_lib, "logstep-stubs", "__init__.pyi")
            self.mkpath(str(stub.parent))
            self.copy_file("logstep.py", str(stub))


setup(cmdclass={"build_py": BuildWithStubs})
