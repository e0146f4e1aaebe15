"""Tests that the files of a release agree: versions, constraints, Docker files."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from engine import __version__

ROOT = Path(__file__).parent.parent
OWN = ("server", "cluster", "engine")  # the packages of a wheel


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def normalized(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, f"not a requirement: {requirement!r}"
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalized(name): version for name, version in pins}


def test_every_dependency_is_pinned() -> None:
    extras = [name for group in project()["optional-dependencies"].values() for name in group]
    declared = {normalized(name) for name in project()["dependencies"] + extras}
    assert declared <= constraints().keys()


def test_the_torch_pin_fits_every_build_of_torch() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", constraints()["torch"])


def test_constraints_name_no_package_index() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_compose_serves_on_loopback_with_a_key_and_pinned_memory() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    service = compose["services"]["understudy"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert {"UNDERSTUDY_API_KEY", "UNDERSTUDY_DEFAULT_MODEL"} <= service["environment"].keys()
    assert service["ulimits"]["memlock"] == -1
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    volumes = {volume.split(":")[0] for volume in service["volumes"]}
    own = {
        volume.split(":")[0] for one in compose["services"].values() for volume in one["volumes"]
    }
    assert volumes <= own and compose["volumes"].keys() <= own
    assert service["image"] == f"understudy:{__version__}"


def test_the_image_runs_the_console_script_without_root() -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    final = stages[-1]
    users = re.findall(r"^USER (\S+)", final, re.MULTILINE)
    assert users and users[-1] != "root"
    assert 'ENTRYPOINT ["understudy"]' in final
    assert "understudy" in project()["scripts"]
    assert re.search(
        r'^HEALTHCHECK [^\n]*\\\n +CMD \["understudy", "health"\]', final, re.MULTILINE
    )


def test_the_image_is_built_by_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"make ([a-z-]+)", (ROOT / "Dockerfile").read_text()))
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_image_has_the_packages_of_traces() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"make install[^\n;]*", dockerfile)
    assert installs and all(' EXTRAS="${EXTRAS}"' in command for command in installs)
    assert re.search(r'^ARG EXTRAS="traces"$', dockerfile, re.MULTILINE)
    assert "traces" in project()["optional-dependencies"]
    service = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["understudy"]
    assert "UNDERSTUDY_TRACES" in service["environment"]


def test_the_build_context_has_all_files_of_the_image() -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    needed = {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", project()["readme"]}
    assert needed | set(OWN) | {"configs"} <= kept
