"""What lies under deploy/ and the Dockerfile is well-formed, agrees with the server, and agrees with itself.

No image is built and no cluster is asked here: linters and the published schemas check the form, the server's own code
checks every option that the files set, and the image's two scripts run as processes.
"""

from __future__ import annotations

import fnmatch
import http.server
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import vecstore
from vecstore.clock import SystemClock
from vecstore.server import settings
from vecstore.server.auth import Authenticator, AuthSettings, digest_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
STANDBY = DEPLOY / "kubernetes" / "standby" / "configmap.yaml"
TEMPLATE = DEPLOY / "kubernetes" / "secret.yaml.template"
USER = 10001
DRAIN_S = settings.ServerSettings().drain_s


def run(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that is installed beside Python."""
    return subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def documents(file: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


def manifest(kind: str) -> dict[str, Any]:
    """Return the first manifest of a kind."""
    return next(found for file in MANIFESTS for found in documents(file) if found["kind"] == kind)


def pod() -> dict[str, Any]:
    """Return the pod's description."""
    found = manifest("StatefulSet")["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def image_environment() -> dict[str, str]:
    """Return the server's options that the image sets."""
    return dict(re.findall(r"(VECSTORE_\w+)=(\S+)", DOCKERFILE))


def test_the_dockerfile_passes_the_linter() -> None:
    """Hadolint, which also checks the shell commands in it, has nothing to say."""
    done = run("hadolint", "--no-color", ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_entrypoint_passes_the_linter() -> None:
    """Shellcheck has nothing to say of the script that the image starts."""
    done = run("shellcheck", DEPLOY / "image" / "entrypoint")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_as_the_documents_say() -> None:
    """Both targets are there, the default is for CPUs, nothing runs as root, and there is a health check."""
    assert re.findall(r"^FROM runtime AS (\w+)$", DOCKERFILE, re.MULTILINE)[-1] == "cpu"
    assert set(re.findall(r"^FROM runtime AS (\w+)$", DOCKERFILE, re.MULTILINE)) == {"cpu", "gpu"}
    assert f"USER {USER}:{USER}" in DOCKERFILE
    assert re.search(r"^HEALTHCHECK .*CMD \[\"healthy\"\]$", DOCKERFILE, re.MULTILINE)


def test_the_builder_is_sent_what_is_copied() -> None:
    """Each file that the Dockerfile copies exists and is not ignored; nothing else is sent."""
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert len(copied) > 4
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in copied:
        path = name.removeprefix("./")
        assert (ROOT / path).exists(), path
        assert any(fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/") for pattern in sent), path
    assert all((ROOT / path).exists() for path in sent)


def test_the_images_options_are_the_servers() -> None:
    """The environment that the image sets means what it should to the server; a wrong name would be an error."""
    found = settings.load(environment=image_environment())
    assert (found.server.listen, found.server.http) == ("0.0.0.0:7601", "0.0.0.0:7602")
    assert found.server.data.startswith("/var/lib/vecstore/")
    assert not found.server.insecure


def test_compose_keeps_to_its_schema() -> None:
    """compose.yaml is what the Compose Specification allows."""
    done = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_compose_runs_the_server_as_it_should(name: str) -> None:
    """Ports on loopback alone, no rights beyond the needed, time to drain, and options that the server knows."""
    (compose,) = documents(DEPLOY / "compose.yaml")
    service = compose["services"][name]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S
    assert service["build"]["target"] in ("cpu", "gpu")
    environment = {key: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value) for key, value in service["environment"].items()}
    assert settings.load(environment={**image_environment(), **environment}).server.data


@pytest.mark.parametrize(("name", "other"), [("east", ""), ("west", "east:7601")])
def test_compose_has_two_regions(name: str, other: str) -> None:
    """Each has a volume and a slot of its own, knows where it is reached, and shows the other a token."""
    (compose,) = documents(DEPLOY / "compose.yaml")
    service = compose["services"][name]
    assert service["profiles"] == ["regions"]
    assert service["cap_drop"] == ["ALL"] and service["read_only"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert {volume.partition(":")[0] for volume in service["volumes"]} == {name, "./secrets"}
    assert name in compose["volumes"]
    environment = {key: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value) for key, value in service["environment"].items()}
    found = settings.load(environment={**image_environment(), **environment})
    assert (found.server.region, found.replication.slot) == (name, name)
    assert (found.replication.standby_of, found.replication.advertise) == (other, f"{name}:7601")
    assert found.replication.plaintext
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert any(found.replication.token_file.startswith(place) for place in mounted)
    assert any(found.auth.tokens.startswith(place) for place in mounted)


def test_the_second_regions_config_map_is_a_configuration(tmp_path: Path) -> None:
    """It stands in for the first one's, under the same name, mounts what that mounts, and makes a standby."""
    (standby,) = documents(STANDBY)
    first = manifest("ConfigMap")
    assert standby["metadata"] == first["metadata"]
    assert standby["data"].keys() == first["data"].keys()
    ((name, text),) = standby["data"].items()
    (tmp_path / name).write_text(text)
    found = settings.load(tmp_path / name, environment={})
    (container,) = pod()["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert found.server.data.startswith(mounts["data"])
    assert found.replication.standby_of and found.replication.slot == found.server.region
    assert found.replication.token_file.startswith(mounts["tokens"])
    assert found.replication.ca.startswith(mounts["tls"])


def test_compose_scrapes_what_the_alerts_ask_for() -> None:
    """Prometheus reads the rules and the server's HTTP port, under the job's name that the rules know."""
    (compose,) = documents(DEPLOY / "compose.yaml")
    config = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    (scrape,) = config["scrape_configs"]
    jobs = set(re.findall(r'job="(\w+)"', (DEPLOY / "alerts.yaml").read_text()))
    assert jobs == {scrape["job_name"]}
    assert scrape["static_configs"] == [{"targets": [f"server:{image_environment()['VECSTORE_SERVER_HTTP'][-4:]}"]}]
    mounted = [
        volume.split(":") for name in ("prometheus", "grafana") for volume in compose["services"][name]["volumes"]
    ]
    assert all((DEPLOY / source).is_file() for source, _, _ in mounted)
    assert config["rule_files"] == [mounted[0][1]]
    for name in ("datasources", "dashboards"):
        assert yaml.safe_load(compose["configs"][name]["content"])["apiVersion"] == 1


def test_the_server_on_gpus_stands_in_for_the_other() -> None:
    """Its image has the extra for GPUs and may use them; its container is given one, is scraped, and has the volume."""
    (compose,) = documents(DEPLOY / "compose.yaml")
    cpu, gpu = compose["services"]["server"], compose["services"]["server-gpu"]
    assert gpu["build"]["target"] == "gpu" and gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "server" in gpu["networks"]["default"]["aliases"]
    assert gpu["volumes"] == cpu["volumes"]
    stage = DOCKERFILE[DOCKERFILE.index("FROM runtime AS gpu") : DOCKERFILE.index("FROM runtime AS cpu")]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in stage  # CUDA, and NVML
    assert re.search(r"CUPY_CACHE_DIR=/tmp/", stage)
    assert re.search(r"FROM build AS build-gpu\nARG GPU_EXTRA=gpu\n(.*\n)+?.*\$1\[\$GPU_EXTRA,server\]", DOCKERFILE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"gpu", *re.findall(r"GPU_EXTRA=([\w-]+) ", DOCKERFILE)} == {"gpu", "gpu-cuvs"} <= set(extras)
    assert "--from=build-gpu" in stage


@pytest.mark.parametrize("file", [*MANIFESTS, TEMPLATE, STANDBY], ids=lambda file: f"{file.parent.name}/{file.name}")
def test_manifests_keep_to_the_schemas_of_kubernetes(file: Path) -> None:
    """Every manifest is what Kubernetes allows, with no name that it does not know."""
    assert documents(file)
    done = run("kubernetes-validate", "--strict", file)
    assert done.returncode == 0, done.stdout


def test_the_folder_holds_what_a_server_needs() -> None:
    """StatefulSet, services, options and disruption budget are applied with the folder; the secret is not."""
    kinds = [found["kind"] for file in MANIFESTS for found in documents(file)]
    assert sorted(kinds) == ["ConfigMap", "PodDisruptionBudget", "Service", "Service", "StatefulSet"]
    assert [found["kind"] for found in documents(TEMPLATE)] == ["Secret"]


def test_manifests_name_each_other() -> None:
    """Selectors find the pod, and what the pod mounts is made by the other manifests."""
    labels = manifest("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    services = [found for file in MANIFESTS for found in documents(file) if found["kind"] == "Service"]
    selectors = [found["spec"]["selector"] for found in services]
    selectors += [manifest(kind)["spec"]["selector"]["matchLabels"] for kind in ("StatefulSet", "PodDisruptionBudget")]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert manifest("StatefulSet")["spec"]["serviceName"] in [found["metadata"]["name"] for found in services]
    (container,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for found in services for port in found["spec"]["ports"]} <= set(ports)
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert volumes["config"]["configMap"]["name"] == manifest("ConfigMap")["metadata"]["name"]
    assert volumes["tokens"]["secret"]["secretName"] == documents(TEMPLATE)[0]["metadata"]["name"]
    claims = [claim["metadata"]["name"] for claim in manifest("StatefulSet")["spec"]["volumeClaimTemplates"]]
    assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes, *claims}


def test_the_pod_has_no_rights_and_time_to_end() -> None:
    """Not root, nothing to write to but its volumes, no capability; longer to end than the server drains."""
    (container,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"]
    assert pod()["securityContext"]["runAsUser"] == USER
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] > DRAIN_S + pause_s
    assert not pod()["enableServiceLinks"]


def test_the_config_map_is_a_configuration(tmp_path: Path) -> None:
    """The server takes the file of the ConfigMap, and finds in it the paths that the pod mounts."""
    (container,) = pod()["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    ((name, text),) = manifest("ConfigMap")["data"].items()
    assert container["args"] == ["serve", "--config", f"{mounts['config']}/{name}"]
    for given in (text, re.sub(r"^# (\[\w+\]|\w+ = )", r"\1", text, flags=re.MULTILINE)):  # as it is, and with TLS
        file = tmp_path / "vecstore.toml"
        file.write_text(given)
        found = settings.load(file, environment={})
        assert found.server.data.startswith(mounts["data"])
        assert found.auth == AuthSettings(tokens=f"{mounts['tokens']}/tokens.toml")
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert found.server.listen.endswith(f":{ports['grpc']}")
        assert found.server.http.endswith(f":{ports['http']}")
    assert found.tls.certificate.startswith(mounts["tls"])


def test_the_secret_is_a_file_of_tokens(tmp_path: Path) -> None:
    """Filled in as it says, the template's file lets its caller do everything, and nobody else in."""
    (secret,) = documents(TEMPLATE)
    ((name, text),) = secret["stringData"].items()
    file = tmp_path / name
    file.write_text(text.replace("@SHA256@", digest_of("a secret")))
    authenticator = Authenticator(AuthSettings(tokens=str(file)), SystemClock())
    assert authenticator.by_token("Bearer a secret").may("admin", None)
    with pytest.raises(vecstore.Unauthenticated):
        authenticator.by_token("Bearer another")


# -- the image's scripts, as processes

BIN = Path(sys.executable).parent
ENTRYPOINT = DEPLOY / "image" / "entrypoint"
HEALTHY = DEPLOY / "image" / "healthy"


def inside(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of the image with a folder for its volume and free ports."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("VECSTORE_")}
    image = image_environment() | {"VECSTORE_SERVER_DATA": str(folder / "store")}
    ports = {"VECSTORE_SERVER_LISTEN": "0.0.0.0:0", "VECSTORE_SERVER_HTTP": "0.0.0.0:0"}
    return {**own, **image, **ports, "PATH": f"{BIN}:{own['PATH']}", **more}


@contextmanager
def container(folder: Path, *arguments: str, **more: str) -> Iterator[tuple[str, int, int]]:
    """Run the entrypoint until it serves; gives what it said on stderr by then, and the ports. Ends it by SIGTERM."""
    log = folder / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [ENTRYPOINT, *arguments], env=inside(folder, **more), stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as running,
    ):
        try:
            assert running.stdout is not None
            ready = re.fullmatch(r"vecstore ready grpc=\S+:(\d+) http=\S+:(\d+)\n", running.stdout.readline())
            assert ready is not None, log.read_text()
            yield log.read_text(), int(ready[1]), int(ready[2])
        finally:
            running.terminate()
            assert running.wait(30) == 0, log.read_text()


def healthy(port: int) -> subprocess.CompletedProcess[str]:
    """Run the image's health check against a port of this machine."""
    return run("python", HEALTHY, VECSTORE_SERVER_HTTP=f"0.0.0.0:{port}")


def test_the_image_makes_a_token_once(tmp_path: Path) -> None:
    """Where nobody was named, a token is made and said once; it opens the server, nothing else does, and it stays."""
    with container(tmp_path) as (said, port, http):
        found = re.findall(r"shown this once: (\S+)$", said, re.MULTILINE)
        assert len(found) == 1
        assert healthy(http).returncode == 0
        with vecstore.connect(f"127.0.0.1:{port}", token=found[0]) as db:
            db.create_collection("docs", 2)
        with pytest.raises(vecstore.Unauthenticated):
            vecstore.connect(f"127.0.0.1:{port}", token="another")
    tokens = tmp_path / "tokens.toml"
    assert found[0] not in tokens.read_text()
    assert tokens.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "store", "tokens.toml"]
    with container(tmp_path, "serve") as (said, port, _), vecstore.connect(f"127.0.0.1:{port}", token=found[0]) as db:
        assert "shown this once" not in said
        assert db.collections() == ["docs"]


def test_the_image_makes_no_token_where_somebody_was_named(tmp_path: Path) -> None:
    """A file of tokens by the environment is taken as it is; --insecure means it."""
    made = run("vecstore", "token", "reader", "--add-to", tmp_path / "mine.toml")
    secret = made.stdout.split()[-1]
    with container(tmp_path, VECSTORE_SERVER_AUTH_TOKENS=str(tmp_path / "mine.toml")) as (said, port, _):
        assert "shown this once" not in said
        with vecstore.connect(f"127.0.0.1:{port}", token=secret) as db, pytest.raises(vecstore.PermissionDenied):
            db.create_collection("docs", 2)
    with (
        container(tmp_path, "serve", "--insecure") as (said, port, _),
        vecstore.connect(f"127.0.0.1:{port}") as db,
    ):
        assert db.create_collection("docs", 2).count() == 0
    assert not (tmp_path / "tokens.toml").exists()


def test_the_image_runs_any_command(tmp_path: Path) -> None:
    """What is no option and not serve is a command of vecstore; no token is made for it."""
    done = subprocess.run([ENTRYPOINT, "--help"], env=inside(tmp_path), capture_output=True, text=True, check=True)
    assert "Serve a store" in done.stdout
    command = [str(ENTRYPOINT), "create", str(tmp_path / "s"), "docs", "--dim", "2", "--json"]
    subprocess.run(command, env=inside(tmp_path), capture_output=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_health_check_fails_where_nobody_is_ready() -> None:
    """Without a server, or with one that is alive and not ready, the image's check fails and says so in a line."""
    assert healthy(1).returncode == 1
    with http.server.HTTPServer(("127.0.0.1", 0), Recovering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = healthy(server.server_port)
        finally:
            server.shutdown()
            thread.join()
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert done.stdout.startswith("not ready: ")


class Recovering(http.server.BaseHTTPRequestHandler):
    """Answers as the server's HTTP port does while the store recovers."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/readyz" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
