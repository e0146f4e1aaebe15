"""A server for the commands that talk to one."""

from collections.abc import Iterator

import pytest

from tests.server.cli.serving import served
from tests.server.conftest import MakeApp


@pytest.fixture
def url(make_app: MakeApp) -> Iterator[str]:
    with served(make_app()) as url:
        yield url
