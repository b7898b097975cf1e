"""The package's interface is the one that `tests/api.pyi` fixes: names, parameters, kinds, defaults, types.

The stub is read with `ast`, the package with `inspect`. The package may add to the stub; what stands there stays.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import vecstore

LATER: tuple[tuple[str, str], ...] = ()
"""What the stub holds and this version does not, with the reason."""

STUB = ast.parse((Path(__file__).parents[1] / "api.pyi").read_text())
MISSING = dataclasses.MISSING
Function = ast.FunctionDef
Parameter = tuple[str, str, Any, str]
"""Name, kind, default, annotation."""


def classes() -> list[ast.ClassDef]:
    """Return the stub's classes that this version holds."""
    later = {name for name, _ in LATER}
    return [node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name not in later]


def functions() -> list[Function]:
    """Return the stub's functions that this version holds."""
    later = {name for name, _ in LATER}
    return [node for node in STUB.body if isinstance(node, ast.FunctionDef) and node.name not in later]


def aliases() -> list[ast.Assign]:
    """Return the stub's type aliases."""
    return [node for node in STUB.body if isinstance(node, ast.Assign)]


def alias_name(node: ast.Assign) -> str:
    """Return the name that an alias gives."""
    target = node.targets[0]
    assert isinstance(target, ast.Name)
    return target.id


def methods(node: ast.ClassDef) -> list[Function]:
    """Return the methods of a class of the stub, without overloads, which say nothing of the one implementation."""
    found = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    return [item for item in found if not any(ast.unparse(mark) == "overload" for mark in item.decorator_list)]


def fields(node: ast.ClassDef) -> list[str]:
    """Return the annotated names of a class of the stub, in order."""
    targets = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def stub_parameters(node: Function) -> list[Parameter]:
    """Return the parameters of a function of the stub."""
    return list(_stub_parameters(node.args))


def _stub_parameters(args: ast.arguments) -> Iterator[Parameter]:
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    defaults.extend(args.defaults)
    for arg, default in zip(positional, defaults, strict=True):
        yield arg.arg, "POSITIONAL_OR_KEYWORD", _value(default), _text(arg.annotation)
    if args.vararg is not None:
        yield args.vararg.arg, "VAR_POSITIONAL", MISSING, _text(args.vararg.annotation)
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield arg.arg, "KEYWORD_ONLY", _value(default), _text(arg.annotation)


def package_parameters(function: Any) -> list[Parameter]:
    """Return the parameters of a function of the package."""
    found = []
    for parameter in inspect.signature(function).parameters.values():
        default = MISSING if parameter.default is parameter.empty else parameter.default
        found.append((parameter.name, parameter.kind.name, default, _text(parameter.annotation)))
    return found


def _value(node: ast.expr | None) -> Any:
    return MISSING if node is None else ast.literal_eval(node)


def _text(annotation: Any) -> str:
    """Return an annotation as normal text; the package defers all of its annotations, so they are text there."""
    if annotation is None or annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, str):
        annotation = ast.parse(annotation, mode="eval").body
    return ast.unparse(annotation) if isinstance(annotation, ast.expr) else str(annotation)


def differences(owner: str, node: Function, function: Any) -> list[str]:
    """Return how the signature of the package differs from the stub's."""
    wanted, found = stub_parameters(node), package_parameters(function)
    if owner:  # the name and type of self are nobody's business
        wanted, found = wanted[1:], found[1:]
    place = f"{owner}.{node.name}".lstrip(".")
    if [p[0] for p in wanted] != [p[0] for p in found]:
        return [f"{place}: parameters {[p[0] for p in found]}, {[p[0] for p in wanted]} expected"]
    lines = [
        f"{place}({want[0]}): {got[1:]}, {want[1:]} expected"
        for want, got in zip(wanted, found, strict=True)
        if want != got
    ]
    result = _text(inspect.signature(function).return_annotation)
    if result != _text(node.returns):
        lines.append(f"{place}: returns {result}, {_text(node.returns)} expected")
    return lines


@pytest.mark.parametrize("node", functions(), ids=lambda node: node.name)
def test_functions_have_the_signatures_of_the_stub(node: Function) -> None:
    """Each function of the stub is there with the same parameters, kinds, defaults and types."""
    assert differences("", node, getattr(vecstore, node.name)) == []


@pytest.mark.parametrize("node", classes(), ids=lambda node: node.name)
def test_methods_have_the_signatures_of_the_stub(node: ast.ClassDef) -> None:
    """Each method of each class of the stub is there with the same parameters, kinds, defaults and types."""
    found = getattr(vecstore, node.name)
    assert [line for item in methods(node) for line in differences(node.name, item, getattr(found, item.name))] == []


@pytest.mark.parametrize("node", classes(), ids=lambda node: node.name)
def test_classes_have_the_bases_of_the_stub(node: ast.ClassDef) -> None:
    """A class is at least everything that the stub says it is, so that callers may catch and annotate by it."""
    wanted = {ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases}
    found = {cls.__name__ for cls in getattr(vecstore, node.name).__mro__}
    assert wanted <= found


@pytest.mark.parametrize("node", classes(), ids=lambda node: node.name)
def test_attributes_are_those_of_the_stub(node: ast.ClassDef) -> None:
    """Attributes are annotated in the class or properties of it."""
    found = getattr(vecstore, node.name)
    annotated = {name for cls in found.__mro__ for name in getattr(cls, "__annotations__", {})}
    properties = {name for name in dir(found) if isinstance(inspect.getattr_static(found, name), property)}
    assert set(fields(node)) <= annotated | properties


def test_a_collections_attributes_are_properties() -> None:
    """A handle follows renames and new fields, so what it says is computed and cannot be assigned."""
    node = next(node for node in classes() if node.name == "Collection")
    assert all(isinstance(inspect.getattr_static(vecstore.Collection, name), property) for name in fields(node))


@pytest.mark.parametrize("node", [n for n in classes() if n.decorator_list], ids=lambda node: node.name)
def test_values_are_frozen_dataclasses_with_the_stubs_fields(node: ast.ClassDef) -> None:
    """The values have the stub's fields in its order, are frozen, and take no other attribute."""
    found = getattr(vecstore, node.name)
    inherited = [field for base in node.bases for field in dataclasses.fields(getattr(vecstore, ast.unparse(base)))]
    wanted = [*(field.name for field in inherited), *fields(node)]
    assert [field.name for field in dataclasses.fields(found)] == wanted
    assert found.__dataclass_params__.frozen
    assert "__slots__" in vars(found)


@pytest.mark.parametrize("node", aliases(), ids=alias_name)
def test_type_aliases_are_there(node: ast.Assign) -> None:
    """Each alias has its name in the package; those of fixed words have the same words."""
    found = getattr(vecstore, alias_name(node))
    if isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value) == "Literal":
        assert get_args(found) == ast.literal_eval(node.value.slice)


@pytest.mark.parametrize(("name", "reason"), LATER)
def test_what_comes_later_is_not_there_yet(name: str, reason: str) -> None:
    """What this version leaves out does not exist by half; when it comes, it leaves the list above."""
    assert not hasattr(vecstore, name), f"{name} is there: take it off LATER (it said: {reason})"


def test_a_signature_that_differs_is_found() -> None:
    """The comparison sees another name, kind, default and type."""

    def search(self: object, vector: str, k: int = 11, *, offset: int | None = None) -> None: ...

    same = "def search(self, vector: str, k: int=11, *, offset: int | None=None) -> None: ..."
    others = (
        "def search(self, other: str, k: int=11, *, offset: int | None=None) -> None: ...",
        "def search(self, vector: str, k: int=11, offset: int | None=None) -> None: ...",
        "def search(self, vector: str, k: int=10, *, offset: int | None=None) -> None: ...",
        "def search(self, vector: bytes, k: int=11, *, offset: int | None=None) -> None: ...",
        "def search(self, vector: str, k: int=11, *, offset: int | None=None) -> int: ...",
    )
    verdicts = []
    for text in (same, *others):
        node = ast.parse(text).body[0]
        assert isinstance(node, ast.FunctionDef)
        verdicts.append(differences("X", node, search) == [])
    assert verdicts == [True, False, False, False, False, False]
