"""Tests of `understudy cluster serve` that need no Ray, and of the files for Kubernetes."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.authentication import MODE, TOKEN, start_here, want_token
from engine import __version__
from engine.spec import ModelSpec, TargetSpec
from server.cli.arguments import build_parsers
from server.cli.cluster import Deployment, app_name, open_cluster, serve_cluster
from server.cli.console import Console
from server.cli.signals import EndSignals
from server.config.files import ConfigError, check_section
from server.config.peers import PeerSection
from server.config.registry import ModelEntry, Registry, make_entry
from server.config.settings import Settings

ROOT = Path(__file__).parents[2]


def args(*options: str) -> Any:
    return build_parsers().parse(["cluster", "serve", "main", *options])


def opened(*options: str, **settings: Any) -> object:
    entry = ModelEntry("main", ModelSpec("main", TargetSpec("nowhere")), 0)
    registry = Registry([entry], "main")
    return open_cluster(args(*options), EndSignals(), Settings(**settings), registry)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "token")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed .*understudy\[cluster\]"):
        opened()


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_replicas must be at least replicas, 3"):
        opened("--replicas", "3", "--max-replicas", "2")
    with pytest.raises(ConfigError, match="--address auto"):
        serve_cluster(args("--attach"), {}, Settings(), Console(), EndSignals(), lambda: None)
    with pytest.raises(ConfigError, match="peers"):
        opened(peers=(PeerSection(url="http://a:1"),))
    for wrong in (["--replicas", "0"], ["--up-wait", "0"], ["--gpus", "-1"], ["--down-idle", "x"]):
        with pytest.raises(SystemExit):
            args(*wrong)


def test_a_cluster_that_is_started_here_wants_a_token_and_listens_on_loopback() -> None:
    env: dict[str, str] = {}
    want_token(env, is_new=True)
    start_here(env)
    assert env[MODE] == "token" and len(env[TOKEN]) == 64
    assert env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    joined: dict[str, str] = {}
    want_token(joined, is_new=False)
    assert joined == {}
    told = {MODE: "disabled"}
    want_token(told, is_new=True)
    assert told == {MODE: "disabled"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "docker" / name).read_text()))


def test_the_rayservice_deploys_what_its_front_end_attaches_to() -> None:
    service, front, address = documents("rayservice.yaml")
    assert (service["kind"], front["kind"], address["kind"]) == (
        "RayService",
        "Deployment",
        "Service",
    )
    serve = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert serve.keys() == {"proxy_location", "http_options", "applications"}
    (app,) = serve["applications"]
    assert app.keys() == {"name", "import_path", "route_prefix", "args"}
    assert app["route_prefix"] is None  # clients reach replicas through the front end only
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    deployment = check_section(app["args"], Deployment, "args")
    assert app["name"] == app_name(make_entry(deployment.model))
    (container,) = front["spec"]["template"]["spec"]["containers"]
    (command,) = container["args"]
    assert f"understudy cluster serve {deployment.model} --address auto --attach" in command
    assert f"--address={service['metadata']['name']}-head-svc:6379" in command
    options = command[command.index("cluster serve") :].split()
    build_parsers().parse(options)
    secrets = {
        env["name"]: env["valueFrom"]["secretKeyRef"]["name"]
        for env in container["env"]
        if "valueFrom" in env
    }
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": secrets["RAY_AUTH_TOKEN"]}
    assert "UNDERSTUDY_API_KEY" in secrets
    assert address["spec"]["selector"] == front["spec"]["template"]["metadata"]["labels"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["maxReplicas"] == deployment.max_replicas
    assert workers["minReplicas"] == deployment.replicas
    pods = [cluster["headGroupSpec"], workers]
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in pods}
    assert images == {container["image"]} == {f"understudy-cluster:{__version__}"}
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins


def test_the_compose_file_has_two_replicas_and_publishes_the_front_end_on_loopback() -> None:
    (compose,) = documents("compose.cluster.yaml")
    services = compose["services"]
    assert services.keys() == {"front", "replica-0", "replica-1"}
    assert [own for own in services.values() if "ports" in own] == [services["front"]]
    assert services["front"]["ports"] == ["127.0.0.1:8000:8000"]
    cards = [
        services[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name in ("replica-0", "replica-1")
    ]
    assert cards == [["0"], ["1"]]
    for own in services.values():
        assert own["environment"]["RAY_AUTH_MODE"] == "token"
        assert own["image"] == f"understudy-cluster:{__version__}"
    command = services["front"]["command"][0]
    assert "--replicas 2" in command and "--include-dashboard=false" in command
    assert services["front"]["build"]["args"]["EXTRAS"] == "cluster,traces"
