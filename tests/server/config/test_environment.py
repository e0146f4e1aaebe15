"""Warnings of environment variables whose names are wrong."""

import pytest

from server.config.environment import unknown_variables


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


def test_variables_of_tests_and_of_kubernetes_are_left_out() -> None:
    names = (
        "UNDERSTUDY_TEST_PYTHON",
        "UNDERSTUDY_SERVICE_HOST",
        "UNDERSTUDY_HEAD_SVC_SERVICE_PORT_GCS_SERVER",
        "UNDERSTUDY_PORT_8000_TCP_ADDR",
    )
    env = dict.fromkeys(names, "1")
    env |= {"UNDERSTUDY_HEAD_SVC_PORT": "tcp://10.0.0.1:6379", "UNDERSTUDY_TLS_CERTS": ""}
    assert not list(unknown_variables(env))
