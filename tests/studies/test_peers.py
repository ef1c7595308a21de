"""Names of other packages' classes."""

from __future__ import annotations

import pytest
from tests.conftest import CHECKOUT

from peers.compare_peers import PEERS
from peers.peers_with_downloads import to_expressions


def test_eight_classes_become_the_seven_expressions() -> None:
    shares = {"Anger": 0.2, "Contempt": 0.5, "Disgust": 0.0, "Fear": 0.1, "Happiness": 0.05}
    found = to_expressions(shares | {"Neutral": 0.05, "Sadness": 0.05, "Surprise": 0.05})
    assert found.tolist() == pytest.approx([0.4, 0.0, 0.2, 0.1, 0.1, 0.1, 0.1])


def test_every_package_has_requirements() -> None:
    for peer in PEERS:
        if peer.environment.parent.name == "peers" and peer.name != "torch":
            assert (CHECKOUT / "benchmarks" / "peers" / f"requirements-{peer.name}.txt").is_file()
