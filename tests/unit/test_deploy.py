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
from pathlib import Path
from typing import Any

import pytest
import yaml

from vecstore.server import settings
from vecstore.server.auth import AuthSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
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


@pytest.mark.parametrize("file", [*MANIFESTS, TEMPLATE], ids=lambda file: file.name)
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
    for given in (text, re.sub(r"^# (\[tls\]|\w+ = )", r"\1", text, flags=re.MULTILINE)):  # as it is, and with TLS
        file = tmp_path / "vecstore.toml"
        file.write_text(given)
        found = settings.load(file, environment={})
        assert found.server.data.startswith(mounts["data"])
        assert found.auth == AuthSettings(tokens=f"{mounts['tokens']}/tokens.toml")
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert found.server.listen.endswith(f":{ports['grpc']}")
        assert found.server.http.endswith(f":{ports['http']}")
    assert found.tls.certificate.startswith(mounts["tls"])


class Probed(http.server.BaseHTTPRequestHandler):
    """Answers /readyz with what its server was told to."""

    def do_GET(self) -> None:
        code = int(os.environ["READY_CODE"]) if self.path == "/readyz" else 404
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("code", "status"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_says_what_the_server_says(code: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's check succeeds where the server is ready, and only there."""
    monkeypatch.setenv("READY_CODE", str(code))
    with http.server.HTTPServer(("127.0.0.1", 0), Probed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = run("python", DEPLOY / "image" / "healthy", VECSTORE_SERVER_HTTP=f"0.0.0.0:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == status, done.stdout


def test_the_health_check_fails_where_nobody_listens() -> None:
    """Without a server the image's check fails, in a line."""
    done = run("python", DEPLOY / "image" / "healthy", VECSTORE_SERVER_HTTP="0.0.0.0:1")
    assert done.returncode == 1
    assert done.stdout.startswith("not ready: ")
