"""What the documentation says is what the code does, as far as a program can compare them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_server.settings import BrainSettings
from cloning_server.settings import CloningSettings
from gateway.settings import GatewaySettings
from mesh.settings import Settings

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "build")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])
PRODUCT = ("mesh", "brain_server", "cloning_server", "client", "gateway")
READERS: dict[str, type[Settings]] = {"B": BrainSettings, "C": CloningSettings, "G": GatewaySettings}


def rows_of_settings() -> Iterator[tuple[str, str, str]]:
    """Variable, default and readers of each row of the configuration's tables."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    for name, default, readers in re.findall(r"^\| `([A-Z0-9_]+)` \|([^|]*)\| ([BCG ]+) \|", text, flags=re.MULTILINE):
        yield name, default.strip().strip("`"), readers


def spelled(default: object) -> str:
    """A default as it would be written into the environment."""
    if isinstance(default, bool):
        return str(default).lower()
    if default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def test_the_configuration_page_names_every_setting_with_its_default() -> None:
    documented = {name: default for name, default, _ in rows_of_settings()}
    fields = {name.upper(): field.default for kind in READERS.values() for name, field in kind.model_fields.items()}

    assert documented == {name: spelled(default) for name, default in fields.items()}


def test_the_configuration_page_says_which_program_reads_a_setting() -> None:
    documented = {name: readers.split() for name, _, readers in rows_of_settings()}

    for letter, kind in READERS.items():
        expected = {name.upper() for name in kind.model_fields}
        assert {name for name, readers in documented.items() if letter in readers} == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://)([^)\s]+)\)", text)

    missing = [link for link in links if not _exists(page, link)]

    assert missing == []


def _exists(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(target.read_text())


def _anchors(text: str) -> set[str]:
    """Names of explicit anchors, and of headings as renderers of Markdown make them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page: Path) -> None:
    folders = "|".join(re.escape(folder.name) for folder in FOLDERS)
    paths = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text())

    # NNNN stands for a number.
    assert [path for path in paths if "NNNN" not in path and not (ROOT / path).exists()] == []


def test_the_operations_page_names_events_that_are_logged() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    events = re.findall(r"^\| `([a-z_]+)` \| (?:info|warning|error) \|", text, flags=re.MULTILINE)
    source = "".join(path.read_text() for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))

    assert events
    assert [event for event in events if f'"{event}"' not in source] == []


@pytest.mark.parametrize("package", ["mesh", "brain_server", "cloning_server"])
def test_the_architecture_page_shows_every_room(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = re.split(r"^##", text.split(f"### {package}\n")[1], flags=re.MULTILINE)[0]
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}

    assert rooms - set(re.findall(r"`(\w+)`", section)) == set()


def test_the_index_lists_every_decision_by_its_title() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))
    lines = [f"- [{_title(path)}](adr/{path.name})" for path in decisions]

    assert re.findall(r"^- \[\d+\. .*$", index, flags=re.MULTILINE) == lines


def _title(decision: Path) -> str:
    return decision.read_text().splitlines()[0].removeprefix("# ")
