"""The contract keeps its word: generated code is up to date, no released field is broken, no method is missed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

from vecstore.wire import methods
from vecstore.wire.v1 import replication_pb2 as rpb
from vecstore.wire.v1 import store_pb2 as pb

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "vecstore" / "wire" / "v1"


def current() -> FileDescriptorProto:
    """Return the contract as the generated code has it."""
    found = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(found)
    return found


def released() -> FileDescriptorProto:
    """Return the contract as the last release had it."""
    (found,) = FileDescriptorSet.FromString((ROOT / "proto" / "released.binpb").read_bytes()).file
    return found


def breaks(old: FileDescriptorProto, new: FileDescriptorProto) -> list[str]:
    """Return what of a new contract breaks those who know the old one."""
    found = [*_breaks_of_enums("", list(old.enum_type), list(new.enum_type))]
    found += _breaks_of_messages("", list(old.message_type), list(new.message_type))
    services = {service.name: service for service in new.service}
    for service in old.service:
        now = {method.name: method for method in services[service.name].method} if service.name in services else {}
        for method in service.method:
            if now.get(method.name) != method:
                found.append(f"method {service.name}.{method.name} is gone, or has other messages")
    return found


def _breaks_of_messages(prefix: str, old: list[DescriptorProto], new: list[DescriptorProto]) -> Iterator[str]:
    by_name = {message.name: message for message in new}
    for message in old:
        now, name = by_name.get(message.name), f"{prefix}{message.name}"
        if now is None:
            yield f"message {name} is gone"
            continue
        fields = {field.number: field for field in now.field}
        kept = {number for span in now.reserved_range for number in range(span.start, span.end)}
        for field in message.field:
            found = fields.get(field.number)
            if found is None and field.number not in kept:
                yield f"{name}.{field.name}: number {field.number} is gone and not reserved"
            elif found is not None and _kind(found) != _kind(field):
                yield f"{name}.{field.name}: number {field.number} is another field now: {found.name}"
        yield from _breaks_of_messages(f"{name}.", list(message.nested_type), list(now.nested_type))
        yield from _breaks_of_enums(f"{name}.", list(message.enum_type), list(now.enum_type))


def _kind(field: object) -> tuple[object, ...]:
    names = ("name", "type", "type_name", "label", "proto3_optional")
    return tuple(getattr(field, name) for name in names)


def _breaks_of_enums(prefix: str, old: list[EnumDescriptorProto], new: list[EnumDescriptorProto]) -> Iterator[str]:
    by_name = {enum.name: enum for enum in new}
    for enum in old:
        now = by_name.get(enum.name)
        values = {} if now is None else {value.number: value.name for value in now.value}
        for value in enum.value:
            if values.get(value.number) != value.name:
                yield f"{prefix}{enum.name}: value {value.number} is not {value.name} any more"


def test_no_released_field_is_broken() -> None:
    """Clients of the last release understand this server, and its clients that server."""
    assert breaks(released(), current()) == []


def test_a_broken_contract_is_seen() -> None:
    """The check sees a number that is gone, one that was given to another, another type, a method that is gone."""
    old = current()

    def changed(message: str) -> tuple[FileDescriptorProto, DescriptorProto]:
        copy = FileDescriptorProto()
        copy.CopyFrom(old)
        return copy, next(one for one in copy.message_type if one.name == message)

    gone, message = changed("SearchRequest")
    del message.field[3]
    assert breaks(old, gone) == ["SearchRequest.recall: number 4 is gone and not reserved"]
    message.reserved_range.add(start=4, end=5)
    assert breaks(old, gone) == []
    renumbered, message = changed("Write")
    message.field[0].number, message.field[1].number = 2, 1
    assert len(breaks(old, renumbered)) == 2
    retyped, message = changed("Written")
    message.field[2].type = message.field[2].TYPE_UINT32
    assert breaks(old, retyped) == ["Written.count: number 3 is another field now: count"]
    fewer, _ = changed("Written")
    del fewer.service[1].method[0]
    assert breaks(old, fewer) == ["method Collections.Upsert is gone, or has other messages"]
    streamed, _ = changed("Written")
    streamed.service[1].method[0].server_streaming = True
    assert len(breaks(old, streamed)) == 1
    acks, _ = changed("Written")
    acks.enum_type[0].value[1].number = 9
    assert breaks(old, acks) == ["Ack: value 1 is not ACK_MEMORY any more"]
    more, message = changed("Written")
    message.field.add(name="new", number=99, type=3, label=1)
    assert breaks(old, more) == []


def _without_versions(text: str) -> str:
    """Return generated code without what differs between the versions that made it."""
    text = re.sub(r"(?m)^# Protobuf Python Version: .*$", "", text)
    text = re.sub(r"(ValidateProtobufRuntimeVersion\(\s*[\w.]+,)[^)]*?(\s*'vecstore)", r"\1\2", text)
    return text.replace("_Optional[bool]", "bool")


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """`proto/generate` makes what is checked in, but for the version that made it."""
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed: nothing was generated")
    command = [str(ROOT / "proto" / "generate"), str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHON": sys.executable}, capture_output=True)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["replication_pb2.py", "replication_pb2.pyi", "store_pb2.py", "store_pb2.pyi"]
    for name in made:
        fresh, kept = (tmp_path / name).read_text(), (CHECKED_IN / name).read_text()
        assert _without_versions(fresh) == _without_versions(kept), f"{name}: run proto/generate"


def test_generated_code_runs_with_every_version_that_is_allowed() -> None:
    """Code refuses runtimes older than what made it: that is no newer than the lowest that an install may bring."""
    made = re.search(r"Protobuf Python Version: (\d+)\.(\d+)\.(\d+)", (CHECKED_IN / "store_pb2.py").read_text())
    assert made is not None
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (wanted,) = [one for one in dependencies if one.startswith("protobuf")]
    low, high = re.fullmatch(r"protobuf>=([\d.]+),<(\d+)", wanted).groups()  # type: ignore[union-attr]
    assert tuple(map(int, made.groups())) <= tuple(map(int, low.split(".")))
    # A runtime takes code of its own major version and of the one before.
    assert int(high) <= int(made[1]) + 2


@pytest.mark.parametrize(
    ("contract", "methods_of"),
    [(pb.DESCRIPTOR, methods.METHODS), (rpb.DESCRIPTOR, methods.REPLICATION_METHODS)],
    ids=["data", "replication"],
)
def test_the_table_has_every_method_of_the_contract(
    contract: FileDescriptor, methods_of: tuple[methods.Method, ...]
) -> None:
    """Names, messages and streams of the table are those of the contract; each method is there once."""
    declaring = FileDescriptorProto()
    contract.CopyToProto(declaring)
    declared = {
        (f"/{contract.package}.{service.name}/{method.name}"): (
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        )
        for service in declaring.service
        for method in service.method
    }
    table = {
        method.path: (
            f".{method.request.DESCRIPTOR.full_name}",
            f".{method.reply.DESCRIPTOR.full_name}",
            method.streams_in,
            method.streams_out,
        )
        for method in methods_of
    }
    assert table == declared
    assert len(methods_of) == len(table) and table.keys() <= methods.BY_PATH.keys()


def test_services_are_those_of_the_tables() -> None:
    """Each method belongs to a service that is registered; who may speak as a store is said of each."""
    assert {method.service for method in methods.METHODS} == set(methods.SERVICES)
    assert {method.service for method in methods.REPLICATION_METHODS} == {methods.REPLICATION}
    open_to_all = {method.name for method in methods.REPLICATION_METHODS if method.role == "none"}
    assert open_to_all == {"Describe"}


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.name)
def test_writes_are_the_methods_that_carry_a_write(method: methods.Method) -> None:
    """What is a write has a `Write` in its request; writes need a grant; answers carry epoch and LSN."""
    assert method.is_write == ("write" in method.request.DESCRIPTOR.fields_by_name)
    if method.is_write:
        assert method.role in ("write", "admin")
    assert {"lsn"} <= set(method.reply.DESCRIPTOR.fields_by_name) or method.name == "Verify"
