"""`__all__` is complete: what a module defines for others it names, and `vecstore` names the whole interface."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import vecstore

from .test_interface import LATER

MODULES = sorted(module.name for module in pkgutil.walk_packages(vecstore.__path__, "vecstore."))


def defined(module: ModuleType) -> set[str]:
    """Return the public functions and classes that a module defines itself."""
    found = {name for name, value in vars(module).items() if inspect.isfunction(value) or inspect.isclass(value)}
    return {n for n in found if not n.startswith("_") and getattr(module, n).__module__ == module.__name__}


@pytest.mark.parametrize("name", MODULES)
def test_all_names_every_public_function_and_class(name: str) -> None:
    """A public function or class that `__all__` leaves out should have been private, or named."""
    module = importlib.import_module(name)
    named = set(getattr(module, "__all__", ()))
    assert defined(module) - named == set()


@pytest.mark.parametrize("name", ["vecstore", *MODULES])
def test_all_names_only_what_exists(name: str) -> None:
    """Every name in `__all__` exists, once, in order."""
    module = importlib.import_module(name)
    named = list(getattr(module, "__all__", ()))
    assert [n for n in named if not hasattr(module, n)] == []
    assert len(named) == len(set(named))


def test_the_package_exports_the_whole_stub() -> None:
    """`vecstore.__all__` holds every name of the stub that this version does not leave for later."""
    stub = ast.parse((Path(__file__).parents[1] / "api.pyi").read_text())
    wanted: set[str] = set()
    for node in stub.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            wanted.add(node.name)
        elif isinstance(node, ast.Assign):
            wanted.update(target.id for target in node.targets if isinstance(target, ast.Name))
    assert wanted - {name for name, _ in LATER} - set(vecstore.__all__) == set()


def test_the_package_defines_nothing_public_beside_all() -> None:
    """A public function or class of `vecstore` itself is in its `__all__`."""
    assert defined(vecstore) - set(vecstore.__all__) == set()
