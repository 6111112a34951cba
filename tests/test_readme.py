"""What the README promises of the environment is what the servers read."""

import re
from pathlib import Path

from brain_server.settings import BrainSettings
from cloning_server.settings import CloningSettings
from gateway.settings import GatewaySettings

README = Path(__file__).parents[1] / "README.md"


def test_the_environment_table_names_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|([^|]*)\|", README.read_text(), flags=re.MULTILINE)
    told = {name: default.strip().strip("`") for name, default in rows}
    kinds = (BrainSettings, CloningSettings, GatewaySettings)
    fields = {name.upper(): field.default for kind in kinds for name, field in kind.model_fields.items()}

    assert {name: told.get(name) for name in fields} == {name: spelled(default) for name, default in fields.items()}


def spelled(default: object) -> str:
    """As one would write it into the environment."""
    if isinstance(default, bool):
        return str(default).lower()
    if default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)
