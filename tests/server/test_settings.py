"""The configuration of a server: where values come from, what is refused, and that every option is explained."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from vecstore import InvalidArgument
from vecstore.server.node import Node
from vecstore.server.settings import Settings, documented, load, options

SECTIONS = [name for name in Settings.__struct_fields__ if name != "origins"]


def written(tmp_path: Path, text: str) -> Path:
    """Write a configuration file."""
    file = tmp_path / "server.toml"
    file.write_text(text)
    return file


def test_later_sources_win(tmp_path: Path) -> None:
    """A flag beats the environment, that the file, that the default; each value knows where it is from."""
    file = written(tmp_path, "[server]\nregion = 'file'\nhttp = 'file:1'\ndrain_s = 5\n[store]\nsearch_threads = 3\n")
    environment = {
        "VECSTORE_SERVER_REGION": "variable",
        "VECSTORE_SERVER_HTTP": "variable:1",
        "VECSTORE_BUILD_THREADS": "2",
    }
    settings = load(file, {("server", "region"): "flag"}, environment)
    found = {(each.section, each.name): (each.value, each.origin) for each in options(settings)}
    assert found["server", "region"] == ("flag", "flag")
    assert found["server", "http"] == ("variable:1", "environment")
    assert found["server", "drain_s"] == (5.0, "file")
    assert found["store", "search_threads"] == (3, "file")
    assert found["store", "build_threads"] == (2, "environment")
    assert found["server", "listen"] == ("127.0.0.1:7601", "default")


def test_what_the_environment_says_is_converted() -> None:
    """Variables are text; numbers and switches are read from it."""
    settings = load(
        environment={
            "VECSTORE_SERVER_REFLECTION": "false",
            "VECSTORE_SERVER_LIMITS_QUEUE_CALLS_MAX": "17",
            "VECSTORE_SERVER_TRACE_SAMPLE_SHARE": "0.5",
        }
    )
    assert settings.server.reflection is False
    assert (settings.limits.queue_calls_max, settings.trace.sample_share) == (17, 0.5)


def test_a_server_switches_often() -> None:
    """Unlike an embedded store, a server sets a short switch interval unless told otherwise."""
    assert load(environment={}).store.switch_interval_s == 0.0002
    assert load(environment={"VECSTORE_SWITCH_INTERVAL_S": "0"}).store.switch_interval_s == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nlisen = 'x'", ["server.lisen", "did you mean listen?"]),
        ("[servr]\n", ["[servr]", "did you mean server?"]),
        ("[server]\ndrain_s = 'soon'", ["server.drain_s", "float", "'soon'"]),
        ("[server]\ndrain_s = '5'", ["server.drain_s", "float", "'5'"]),
        ("[server]\nreflection = 1", ["server.reflection", "bool"]),
        ("[server]\nmessage_bytes_max = 1000", ["server.message_bytes_max", ">="]),
        ("[limits]\nqueue_calls_max = 0", ["limits.queue_calls_max", ">= 1"]),
        ("[store]\nmemory_bytes_max = -1", ["store.memory_bytes_max", "-1"]),
        ("[log]\nlevel = 'loud'", ["log.level", "'loud'"]),
        ("server = 3", ["server", "section"]),
        ("[server", ["TOML"]),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    """The error names the file, the option, what was given and what is allowed."""
    file = written(tmp_path, text)
    with pytest.raises(InvalidArgument) as caught:
        load(file, environment={})
    for word in (str(file), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("VECSTORE_SERVER_LISEN", "x", "did you mean VECSTORE_SERVER_LISTEN?"),
        ("VECSTORE_SERVER_DRAIN_S", "soon", "VECSTORE_SERVER_DRAIN_S"),
        ("VECSTORE_SEARCH_THREADS", "-1", "VECSTORE_SEARCH_THREADS"),
    ],
)
def test_a_bad_variable_is_refused(variable: str, value: str, word: str) -> None:
    """Unknown names, and values that are not allowed, are named."""
    with pytest.raises(InvalidArgument, match=word.replace("?", r"\?")):
        load(environment={variable: value})


def test_what_others_set_is_left_alone() -> None:
    """Variables that Kubernetes sets for a service named vecstore-server, and those of clients, mean nothing here."""
    others = [
        "SERVER_SERVICE_HOST",
        "SERVER_PORT",
        "SERVER_PORT_7601_TCP_ADDR",
        "SERVER_SERVICE_PORT_GRPC",
        "TOKEN",
        "CA",
    ]
    assert load(environment={f"VECSTORE_{name}": "tcp://10.0.0.1:7601" for name in others}).origins == {}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there is an error, not an empty one."""
    with pytest.raises(InvalidArgument, match=r"none\.toml: cannot be read"):
        load(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({("server", "listen"): "7601"}, ["server.listen", "'7601'", "HOST:PORT"]),
        ({("server", "listen"): "::1:7601"}, ["server.listen", "HOST:PORT"]),
        ({("server", "listen"): "localhost:99999"}, ["server.listen", "99999"]),
        ({("server", "listen"): "0.0.0.0:0"}, ["server.listen", "0.0.0.0", "--insecure"]),
        ({("server", "listen"): "[::]:0"}, ["server.listen", "--insecure"]),
        ({("server", "http"): "0.0.0.0:0"}, ["server.http", "--insecure"]),
        ({("tls", "certificate"): "none.pem"}, ["tls.key"]),
        ({("tls", "client_ca"): "none.pem", ("auth", "tokens"): "none.toml"}, ["tls.certificate"]),
        ({("tls", "certificate"): "none.pem", ("tls", "key"): "key.pem"}, ["tls.certificate", "none.pem"]),
        ({("auth", "tokens"): "none.toml"}, ["none.toml"]),
    ],
)
def test_settings_that_cannot_be_used_are_refused(flags: dict[tuple[str, str], str], words: list[str]) -> None:
    """Addresses and files are looked at before anything is opened."""
    with pytest.raises(InvalidArgument) as caught:
        Node(load(flags=flags, environment={}))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_is_explained(section: str) -> None:
    """Each option has a text in its class, which `vecstore config` prints, and a row in the operator's table."""
    kind = type(getattr(Settings(), section))
    names = [field.name for field in msgspec.structs.fields(kind)]
    docs = documented(kind)
    assert list(docs) == names
    assert all(text.endswith(".") for text in docs.values())
    table = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    prefix = "" if section == "store" else f"{section}."
    assert [name for name in names if f"| `{prefix}{name}` |" not in table] == []


def test_every_variable_is_one_option() -> None:
    """No two options share a variable."""
    variables = [each.variable for each in options(Settings())]
    assert len(set(variables)) == len(variables)


def config(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `vecstore config`."""
    command = [sys.executable, "-m", "vecstore.cli.main", "config", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_what_config_prints_is_a_configuration(tmp_path: Path) -> None:
    """The output, given back as a file, means the same; origins and texts stand beside the values."""
    file = written(tmp_path, "[server]\nregion = 'a \"quoted\" \\ name'\n")
    done = config("--config", str(file), VECSTORE_SERVER_DRAIN_S="7")
    assert done.returncode == 0
    again = load(written(tmp_path, done.stdout), environment={})
    assert tomllib.loads(done.stdout)["server"]["region"] == 'a "quoted" \\ name'
    assert (again.server.drain_s, again.store) == (7.0, Settings().store)
    assert "drain_s = 7.0  # environment VECSTORE_SERVER_DRAIN_S" in done.stdout
    assert "# Name of the place that this server stands in" in done.stdout


def test_config_as_json(tmp_path: Path) -> None:
    """With --json each option is an object; a bad file ends with exit code 2."""
    found = json.loads(config("--json").stdout)
    assert list(found) == SECTIONS
    assert found["server"]["listen"]["origin"] == "default"
    assert found["server"]["listen"]["environment"] == "VECSTORE_SERVER_LISTEN"
    done = config("--config", str(written(tmp_path, "[server]\nnone = 1")))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
