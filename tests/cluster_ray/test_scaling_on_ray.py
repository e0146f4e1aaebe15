"""Tests that Ray adds replicas while requests wait, and takes idle ones away."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster_ray.servers import Cluster, cluster, stream
from tests.cluster_ray.test_demo_cluster import STORY

pytestmark = pytest.mark.timeout(900)

LONG: dict[str, Any] = STORY | {"max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--max-replicas", "2", "--up-wait", "1", "--down-idle", "5")
    with cluster(tmp_path_factory.mktemp("scaling"), *options) as ours:
        yield ours


def test_waiting_requests_bring_a_replica_and_idle_time_takes_it_away(fleet: Cluster) -> None:
    fleet.wait_for(1)
    with ThreadPoolExecutor(16) as pool:  # twice as many as run at once
        asked = [pool.submit(stream, fleet.url, LONG) for _ in range(32)]
        fleet.wait_for(2)
        assert len({own.result()[0] for own in asked}) == 1
    whole = asked[0].result()[0]
    with ThreadPoolExecutor(1) as pool:
        while len(fleet.peers()) == 2:  # one runs streams, so that the other one is idle
            assert pool.submit(stream, fleet.url, LONG).result()[0] == whole
    fleet.wait_for(1)
    assert stream(fleet.url, LONG)[0] == whole
