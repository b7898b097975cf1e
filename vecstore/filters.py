"""Conditions on the declared fields of points: built with `Field` and operators, or given as a dict.

``(Field("section") == "web") & (Field("installed_size") < 500)`` and ``{"section": "web", "installed_size": {"$lt":
500}}`` are the same filter. `parse` checks either form against the declared fields and returns the normal form, which
alone is evaluated (`vecstore.engine.columns`) and whose `key` names the filter in caches: equal filters, equal keys.

Nulls (absent keys and None): ``!=``, ``~``, ``$nin`` and ``$not`` are exact complements, so they match nulls; of the
rest only `Field.is_null` does. A comparison with a list field matches where any element does. Strings order by code
point. An int64 field compares with floats exactly.

Nothing here computes on rows, and nothing does I/O. Conditions are immutable and thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NoReturn

from .errors import InvalidArgument
from .fields import (
    INT64_MAX,
    INT64_MIN,
    Cell,
    element_type,
    plain_scalar,
    scalar_cell,
    shown,
    timestamp_text,
    timestamp_us,
)
from .values import FieldType

__all__ = ["All", "AnyOf", "Compare", "Condition", "Field", "IsIn", "IsNull", "Not", "parse"]

FILTER_DEPTH_MAX = 64
FILTER_CONDITIONS_MAX = 4_096
FILTER_VALUES_MAX = 65_536

_PARSED_MAX = 256
_PLAIN_TYPES = frozenset({str, int, float, bool})
_TEXT_KEYS_MAX = 4
_TEXT_LENGTH_MAX = 200
"""Short dicts are remembered with their normal forms, by how they are written; long ones are not worth writing out."""
_parsed: dict[tuple[int, str], tuple[Mapping[str, FieldType], Condition]] = {}

Comparison = Literal["$eq", "$lt", "$lte", "$gt", "$gte", "$contains"]
_SYMBOLS = {"$eq": "==", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
_OPERATORS = "$eq $ne $lt $lte $gt $gte $in $nin $contains $null $not"


class Condition:
    """A filter: combine with ``&``, ``|`` and ``~``; ``and``, ``or`` and ``not`` raise `InvalidArgument`."""

    def __and__(self, other: Condition) -> Condition:
        return All((*_terms(All, self), *_terms(All, other))) if isinstance(other, Condition) else NotImplemented

    def __or__(self, other: Condition) -> Condition:
        return AnyOf((*_terms(AnyOf, self), *_terms(AnyOf, other))) if isinstance(other, Condition) else NotImplemented

    def __invert__(self) -> Condition:
        return self.condition if isinstance(self, Not) else Not(self)

    def __bool__(self) -> NoReturn:
        raise InvalidArgument(
            f"filter: {self!r} has no truth value of its own", hint="combine conditions with & | ~, not and, or, not"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the dict form, of JSON values."""
        raise NotImplementedError

    @cached_property
    def key(self) -> bytes:
        """The filter's name in caches: of parsed conditions, equal filters have equal keys."""
        return self._key().encode()

    def _key(self) -> str:
        raise NotImplementedError


def _terms(kind: type[All | AnyOf], condition: Condition) -> tuple[Condition, ...]:
    # Chains of & or | stay flat, so that a loop that adds a thousand of them doesn't nest a thousand levels.
    return condition.conditions if isinstance(condition, All | AnyOf) and type(condition) is kind else (condition,)


@dataclass(frozen=True, repr=False)
class Compare(Condition):
    """A field compared with one value.

    Attributes
    ----------
    type
        Of the field; "" until parsed. When it is set, `value` is a cell (see `vecstore.fields`) and `operator` is not
        "$contains".
    """

    field: str
    operator: Comparison
    value: Any
    type: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {self.field: {self.operator: _plain(self.type, self.value)}}

    def _key(self) -> str:
        return f"{self.operator}({self.field!r},{self.type},{self.value!r})"

    def __repr__(self) -> str:
        if self.operator == "$contains":
            return f"Field({self.field!r}).contains({self.value!r})"
        return f"(Field({self.field!r}) {_SYMBOLS[self.operator]} {_plain(self.type, self.value)!r})"


@dataclass(frozen=True, repr=False)
class IsIn(Condition):
    """A field whose value is one of several; `values` are cells, sorted and without repeats, when `type` is set."""

    field: str
    values: tuple[Any, ...]
    type: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {self.field: {"$in": [_plain(self.type, value) for value in self.values]}}

    def _key(self) -> str:
        return f"$in({self.field!r},{self.type},{self.values!r})"

    def __repr__(self) -> str:
        return f"Field({self.field!r}).is_in({[_plain(self.type, value) for value in self.values]!r})"


@dataclass(frozen=True, repr=False)
class IsNull(Condition):
    """A field that is absent or None."""

    field: str

    def to_dict(self) -> dict[str, Any]:
        return {self.field: {"$null": True}}

    def _key(self) -> str:
        return f"$null({self.field!r})"

    def __repr__(self) -> str:
        return f"Field({self.field!r}).is_null()"


@dataclass(frozen=True, repr=False)
class Not(Condition):
    """The exact complement of a condition, nulls included."""

    condition: Condition

    def to_dict(self) -> dict[str, Any]:
        return {"$not": self.condition.to_dict()}

    def _key(self) -> str:
        return f"$not({self.condition._key()})"

    def __repr__(self) -> str:
        return f"~{self.condition!r}"


@dataclass(frozen=True, repr=False)
class All(Condition):
    """Every condition holds; of none, that is always so."""

    conditions: tuple[Condition, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"$and": [condition.to_dict() for condition in self.conditions]} if self.conditions else {}

    def _key(self) -> str:
        return f"$and({','.join(condition._key() for condition in self.conditions)})"

    def __repr__(self) -> str:
        return f"({' & '.join(map(repr, self.conditions))})"


@dataclass(frozen=True, repr=False)
class AnyOf(Condition):
    """At least one condition holds."""

    conditions: tuple[Condition, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"$or": [condition.to_dict() for condition in self.conditions]}

    def _key(self) -> str:
        return f"$or({','.join(condition._key() for condition in self.conditions)})"

    def __repr__(self) -> str:
        return f"({' | '.join(map(repr, self.conditions))})"


def _plain(type: str, value: Any) -> Any:
    """Return a value as it stands in the dict form, which is JSON."""
    if type == "timestamp":
        return timestamp_text(value)
    if isinstance(value, datetime):
        try:
            return timestamp_text(timestamp_us(value))
        except ValueError:
            return value
    return value if type else plain_scalar(value)


class Field:
    """A declared field, from which conditions are made by comparing it with values.

    Parameters
    ----------
    name
        A top-level key of the payloads.
    """

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidArgument(f"field: name {shown(name)}; allowed is text that is not empty")
        self.name = name

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return Compare(self.name, "$eq", value)

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Not(Compare(self.name, "$eq", value))

    def __lt__(self, value: Any) -> Condition:
        return Compare(self.name, "$lt", value)

    def __le__(self, value: Any) -> Condition:
        return Compare(self.name, "$lte", value)

    def __gt__(self, value: Any) -> Condition:
        return Compare(self.name, "$gt", value)

    def __ge__(self, value: Any) -> Condition:
        return Compare(self.name, "$gte", value)

    def is_in(self, values: Sequence[Any]) -> Condition:
        """Match where the value is one of these; of a list field, where any element is."""
        return IsIn(self.name, _members(self.name, values))

    def contains(self, value: Any) -> Condition:
        """Match where the list holds the value."""
        return Compare(self.name, "$contains", value)

    def is_null(self) -> Condition:
        """Match where the field is absent or None."""
        return IsNull(self.name)

    def __repr__(self) -> str:
        return f"Field({self.name!r})"


def _members(field: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidArgument(f"filter.{field}: {shown(values)} given to is one of; allowed is a list of values")
    return tuple(values)


def parse(filter: Condition | Mapping[str, Any], fields: Mapping[str, FieldType]) -> Condition:
    """Check a filter against the declared fields and return its normal form.

    Parameters
    ----------
    filter
        A condition, or the dict form; ``{}`` matches everything.
    fields
        The declared fields with their types.

    Returns
    -------
    Condition
        Made of `Compare` and `IsIn` with types and cells, `IsNull`, `Not`, `All` and `AnyOf`.

    Raises
    ------
    InvalidArgument
        A field that is not declared, a value that does not fit, an unknown operator, or a filter that is too large.
    """
    if isinstance(filter, Condition):
        # Conditions never change: one that is used again keeps its normal form, for these very fields.
        known = filter.__dict__.get("_parsed")
        if known is not None and known[0] is fields:
            return known[1]  # type: ignore[no-any-return]
        parsed = _Parser(fields).condition(filter, 1)
        filter.__dict__["_parsed"] = (fields, parsed)
        return parsed
    text = _text(filter)
    if not text or len(text) > _TEXT_LENGTH_MAX:
        return _Parser(fields).condition(filter, 1)
    entry = _parsed.get((id(fields), text))
    if entry is not None and entry[0] is fields:
        return entry[1]
    parsed = _Parser(fields).condition(filter, 1)
    if len(_parsed) >= _PARSED_MAX:
        _parsed.clear()
    # The fields are kept with it, so that their identity stays theirs.
    _parsed[id(fields), text] = (fields, parsed)
    return parsed


def _text(filter: object) -> str:
    """Return how a short dict of plain values is written, which tells 1 from True and 1.0; "" for any other filter."""
    if type(filter) is not dict or len(filter) > _TEXT_KEYS_MAX:
        return ""
    for value in filter.values():
        if type(value) is dict:
            if len(value) > _TEXT_KEYS_MAX or not _PLAIN_TYPES.issuperset(map(type, value.values())):
                return ""
        elif type(value) not in _PLAIN_TYPES:
            return ""
    return repr(filter)


class _Parser:
    """One walk over a filter, which counts what it meets."""

    def __init__(self, fields: Mapping[str, FieldType]) -> None:
        self._fields = fields
        self._conditions = 0
        self._values = 0

    def condition(self, given: object, depth: int) -> Condition:
        """Return the normal form of a condition, or of a dict."""
        if depth > FILTER_DEPTH_MAX:
            raise InvalidArgument(f"filter: nested deeper than {FILTER_DEPTH_MAX} levels")
        self._conditions += 1
        if self._conditions > FILTER_CONDITIONS_MAX:
            raise InvalidArgument(f"filter: more than {FILTER_CONDITIONS_MAX} conditions")
        if isinstance(given, Condition):
            return self._node(given, depth)
        if isinstance(given, Mapping):
            return _joined(All, [self._entry(name, value, depth) for name, value in given.items()])
        raise InvalidArgument(f"filter: {shown(given)}; allowed is a condition made with Field, or a dict")

    def _node(self, given: Condition, depth: int) -> Condition:
        match given:
            case Not(condition):
                return ~self.condition(condition, depth + 1)
            case All(conditions) | AnyOf(conditions):
                kind = All if isinstance(given, All) else AnyOf
                return _joined(kind, [self.condition(condition, depth + 1) for condition in conditions])
            case IsNull(field):
                self._type(field)
                return given
            case IsIn(field, values, type):
                return self._is_in(field, [_plain(type, value) if type else value for value in values])
            case Compare(field, operator, value, type):
                return self._compare(field, operator, _plain(type, value) if type else value)
        raise InvalidArgument(f"filter: {shown(given)}; allowed is a condition made with Field")

    def _entry(self, name: object, value: Any, depth: int) -> Condition:
        """Return the normal form of one key of a dict: a field, or one of $and, $or and $not."""
        if name == "$not":
            return ~self.condition(value, depth + 1)
        if name == "$and" or name == "$or":
            if not isinstance(value, list | tuple) or not value:
                raise InvalidArgument(f"filter.{name}: {shown(value)}; allowed is a list of at least one filter")
            return _joined(All if name == "$and" else AnyOf, [self.condition(part, depth + 1) for part in value])
        if not isinstance(name, str) or name.startswith("$"):
            raise InvalidArgument(f"filter: key {shown(name)}; allowed are a field's name, $and, $or and $not")
        if not isinstance(value, Mapping):
            return self._compare(name, "$eq", value)
        return self._operators(name, value, depth)

    def _operators(self, field: str, operators: Mapping[Any, Any], depth: int) -> Condition:
        if not operators:
            raise InvalidArgument(f"filter.{field}: {{}}; allowed is a value, or a dict of {_OPERATORS}")
        if depth > FILTER_DEPTH_MAX:
            raise InvalidArgument(f"filter: nested deeper than {FILTER_DEPTH_MAX} levels")
        return _joined(All, [self._operator(field, op, value, depth + 1) for op, value in operators.items()])

    def _operator(self, field: str, operator: object, value: Any, depth: int) -> Condition:
        match operator:
            case "$eq" | "$lt" | "$lte" | "$gt" | "$gte" | "$contains":
                return self._compare(field, operator, value)
            case "$ne":
                return ~self._compare(field, "$eq", value)
            case "$in":
                return self._is_in(field, _members(field, value))
            case "$nin":
                return ~self._is_in(field, _members(field, value))
            case "$null":
                return self._is_null(field, value)
            case "$not" if isinstance(value, Mapping):
                return ~self._operators(field, value, depth)
            case "$not":
                raise InvalidArgument(f"filter.{field}.$not: {shown(value)}; allowed is a dict of {_OPERATORS}")
        raise InvalidArgument(f"filter.{field}: operator {shown(operator)}; allowed are {_OPERATORS}")

    def _is_null(self, field: str, value: object) -> Condition:
        self._type(field)
        if not isinstance(value, bool):
            raise InvalidArgument(f"filter.{field}.$null: {shown(value)}; allowed are True and False")
        return IsNull(field) if value else Not(IsNull(field))

    def _is_in(self, field: str, values: Iterable[Any]) -> Condition:
        type = self._type(field)
        cells = {self._cell(field, type, value) for value in values}
        if len(cells) == 1:
            return Compare(field, "$eq", cells.pop(), element_type(type))
        return IsIn(field, tuple(sorted(cells)), element_type(type))

    def _compare(self, field: str, operator: Comparison, value: Any) -> Condition:
        type, of = self._type(field), element_type(self._type(field))
        if operator == "$contains":
            if type == of:
                raise InvalidArgument(
                    f"filter.{field}: $contains asks a list field, this is {type}", hint="use $eq or $in"
                )
            operator = "$eq"
        if operator == "$eq":
            return Compare(field, operator, self._cell(field, type, value), of)
        if of == "bool":
            raise InvalidArgument(f"filter.{field}: {operator} on {type}, which has no order; allowed are $eq and $in")
        if of == "int64":
            return self._int_range(field, type, operator, value)
        return Compare(field, operator, self._cell(field, type, value), of)

    def _int_range(self, field: str, type: str, operator: Comparison, value: Any) -> Condition:
        """Turn any finite bound into the int64 bound that the same integers satisfy."""
        bound = plain_scalar(value)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not _finite(bound):
            self._refuse(field, type, value, "a finite number expected")
        self._count_value()
        # x < 2.5 is x < 3; x <= 2.5 is x <= 2; and so on for the other direction.
        up = operator in ("$lt", "$gte")
        exact = bound if isinstance(bound, int) else math.ceil(bound) if up else math.floor(bound)
        if exact > INT64_MAX:
            operator, exact = ("$lte", INT64_MAX) if operator in ("$lt", "$lte") else ("$gt", INT64_MAX)
        elif exact < INT64_MIN:
            operator, exact = ("$gte", INT64_MIN) if operator in ("$gt", "$gte") else ("$lt", INT64_MIN)
        return Compare(field, operator, exact, "int64")

    def _cell(self, field: str, type: str, value: Any) -> Cell:
        self._count_value()
        of = element_type(type)
        if value is None:
            self._refuse(field, type, value, "nothing compares with null: use is_null() or $null")
        plain = plain_scalar(value)
        if of == "int64" and isinstance(plain, float) and plain.is_integer():
            plain = int(plain)
        try:
            cell = scalar_cell(of, plain)
            if isinstance(cell, str):
                cell.encode()
        except UnicodeEncodeError:
            self._refuse(field, type, value, "valid Unicode expected")
        except ValueError as exc:
            self._refuse(field, type, value, str(exc))
        # Zero has one key: -0.0 compares equal to it.
        return cell + 0.0 if isinstance(cell, float) else cell

    def _count_value(self) -> None:
        self._values += 1
        if self._values > FILTER_VALUES_MAX:
            raise InvalidArgument(f"filter: more than {FILTER_VALUES_MAX} values")

    def _type(self, field: str) -> FieldType:
        type = self._fields.get(field)
        if type is None:
            declared = ", ".join(sorted(self._fields)) or "none"
            raise InvalidArgument(
                f"filter: field {field!r} is not declared; declared are {declared}",
                hint="add_field declares one",
                details={"field": field, "declared": sorted(self._fields)},
            )
        return type

    def _refuse(self, field: str, type: str, value: object, why: str) -> NoReturn:
        raise InvalidArgument(
            f"filter.{field}: {shown(value)} does not fit {type}: {why}", details={"field": field, "type": type}
        )


def _finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _joined(kind: Callable[[tuple[Condition, ...]], All | AnyOf], conditions: Iterable[Condition]) -> Condition:
    """Return the conditions as one: flat, in the order of their keys, without repeats."""
    by_key: dict[bytes, Condition] = {}
    for condition in conditions:
        terms = condition.conditions if isinstance(condition, All | AnyOf) and type(condition) is kind else (condition,)
        by_key.update((term.key, term) for term in terms)
    if len(by_key) == 1:
        return next(iter(by_key.values()))
    return kind(tuple(by_key[key] for key in sorted(by_key)))
