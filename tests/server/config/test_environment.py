"""Environment variables: warnings of wrong names, and those that others set."""

from pathlib import Path

import pytest

from server.config.environment import unknown_variables
from server.config.files import ConfigError
from server.config.settings import Settings, load_settings


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("UNDERSTUDY_PROT", "Did you mean UNDERSTUDY_PORT?"),
        ("UNDERSTUDY_port", "Did you mean UNDERSTUDY_PORT?"),
        ("UNDERSTUDY_APIKEY", "Did you mean UNDERSTUDY_API_KEY?"),
        ("UNDERSTUDY_XYZZY", "docs/settings.md lists"),
        ("UNDERSTUDY_PEERS", "`peers` is a key of understudy.yaml only"),
    ],
)
def test_a_name_that_is_not_known_is_named_with_the_most_similar_one(name: str, words: str) -> None:
    (warning,) = unknown_variables({name: "1", "UNDERSTUDY_PORT": "1", "HOME": "/", "XDG": "x"})
    assert name in warning and words in warning


def test_variables_of_the_tests_are_left_out() -> None:
    env = {"UNDERSTUDY_TEST_PYTHON": "python", "UNDERSTUDY_TLS_CERTS": ""}
    assert not list(unknown_variables(env))


def service_links(name: str) -> dict[str, str]:
    """Return what Kubernetes sets in each pod beside a service with a named and a UDP port."""
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "SERVICE_PORT_GCS_SERVER": "53",
        "PORT": "tcp://10.0.0.1:8000",
    }
    for number, protocol in ((8000, "tcp"), (53, "udp")):
        port = f"PORT_{number}_{protocol.upper()}"
        links |= {
            port: f"{protocol}://10.0.0.1:{number}",
            f"{port}_PROTO": protocol,
            f"{port}_PORT": str(number),
            f"{port}_ADDR": "10.0.0.1",
        }
    return {f"{name}_{link}": value for link, value in links.items()}


@pytest.mark.parametrize("service", ["UNDERSTUDY", "UNDERSTUDY_HEAD", "UNDERSTUDY_HEAD_SVC"])
def test_links_to_services_are_no_settings(service: str, tmp_path: Path) -> None:
    (tmp_path / "understudy.yaml").write_text("port: 9000")
    env = service_links(service) | {"UNDERSTUDY_HOST": "0.0.0.0", "UNDERSTUDY_KEEPALIVE": "3"}
    assert not list(unknown_variables(env))
    settings = load_settings([tmp_path], env, {})
    assert settings == Settings(port=9000, host="0.0.0.0", keepalive=3)
    assert load_settings([], env, {}).port == Settings().port


@pytest.mark.parametrize("protocol", ["udp", "sctp"])
def test_the_first_port_of_a_service_may_have_another_protocol(protocol: str) -> None:
    env = {"UNDERSTUDY_PORT": f"{protocol}://10.0.0.1:8000"}
    assert load_settings([], env, {}) == Settings()


def test_only_the_name_of_a_port_may_have_the_address_of_a_service() -> None:
    (warning,) = unknown_variables({"UNDERSTUDY_ULR": "tcp://10.0.0.1:8000"})
    assert "UNDERSTUDY_URL" in warning
    with pytest.raises(ConfigError, match=r"UNDERSTUDY_PORT.*'http://10"):
        load_settings([], {"UNDERSTUDY_PORT": "http://10.0.0.1:8000"}, {})
