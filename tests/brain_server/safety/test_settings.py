"""The settings of the safety agent, as an operator writes them."""

import pytest

from brain_server.safety.rules import ALL_RULES
from brain_server.safety.settings import SafetySettings
from mesh.settings import InvalidSettings, load_settings


@pytest.mark.parametrize("names", [ALL_RULES, ("profanity",), ("personal_data", "profanity")])
def test_each_rule_can_be_switched_on_by_its_name(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_RULES", ", ".join(names))
    assert load_settings(SafetySettings).safety_rules == names


def test_the_name_of_no_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_RULES", "phrases,swearing")
    with pytest.raises(InvalidSettings, match="SAFETY_RULES"):
        load_settings(SafetySettings)
