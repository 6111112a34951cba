"""The sketches for Kubernetes: nothing runs them here, but what they say to our servers is what these read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from brain_server.settings import BrainSettings
from cloning_server.settings import CloningSettings
from mesh.rpc.health import LIVENESS

SETTINGS: dict[str, type[BrainSettings] | type[CloningSettings]] = {
    "brain_server": BrainSettings,
    "cloning_server": CloningSettings,
}
# Read by Ray, and by whatever wants a place to write.
OTHERS = {"HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"}
SKETCHES = sorted(
    path for path in (Path(__file__).parents[1] / "k8s").glob("*.yaml") if not path.name.startswith("compose")
)


def servers(sketch: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The containers of our servers: module, container and its pod."""
    for document in yaml.safe_load_all(sketch.read_text()):
        pod = document["spec"].get("template", {}).get("spec", {})
        for container in pod.get("containers", ()):
            module = container.get("command", [""])[-1]
            if module in SETTINGS:
                yield module, container, pod


@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda path: path.name)
def test_a_sketch_sets_what_its_servers_read_and_gives_them_time_to_drain(sketch: Path) -> None:
    containers = list(servers(sketch))
    assert containers
    for module, container, pod in containers:
        kind = SETTINGS[module]
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert {name for name in env if name.lower() not in kind.model_fields} <= OTHERS
        settings = kind(**{name.lower(): value for name, value in env.items() if value and name not in OTHERS})
        assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["readinessProbe"]["grpc"]["service"].startswith("aivo.")
        assert container["livenessProbe"]["grpc"]["service"] == LIVENESS
