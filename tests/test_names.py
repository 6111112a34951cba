"""The product's names: a class name means one thing, and a name says what its value is.

Reads the source, so that a new file is covered without being listed here.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mesh", "brain_server", "cloning_server", "curriculum", "client", "gateway")

# Participles and pronouns, which say that there is a value but not what it is.
# fmt: off
BARE_WORDS = frozenset({
    "asked", "brought", "ended", "found", "given", "gone", "got", "heard", "held", "kept", "known", "left",
    "made", "meant", "one", "read", "said", "seen", "shown", "taken", "told", "wanted",
})
# fmt: on
# The present tense of these verbs is spelled alike: a function may have such a name, a variable may not.
VERBS = frozenset({"read"})

# Exceptions by file.
BARE_NAMES = {
    "mesh/adapters/manifest.py": "given",  # a field of stored manifests
    "cloning_server/examples/fidelity.py": "left",  # the side opposite to right
}


def product_files(*packages: str) -> list[Path]:
    return [path for package in packages or PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def defined_names(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yields each name that a module binds, with the node that binds it."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node
            case ast.arg(arg=name):
                yield name, node
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.alias(asname=str(name)):
                yield name, node
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node
            case _:
                pass


def is_bare(name: str, node: ast.AST) -> bool:
    word = name.strip("_").lower()
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return word in BARE_WORDS and not (is_function and word in VERBS)


def bare_names(tree: ast.Module) -> set[str]:
    return {name for name, node in defined_names(tree) if is_bare(name, node)}


def test_no_class_name_occurs_twice_in_the_product() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                # A leading underscore does not make it another name.
                places[node.name.lstrip("_")].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: where for name, where in places.items() if len(where) > 1}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_in_the_product_is_a_bare_participle_or_pronoun(package: str) -> None:
    names: dict[str, set[str]] = {}
    for path in product_files(package):
        place = str(path.relative_to(ROOT))
        bound_names = bare_names(ast.parse(path.read_text())) | ({path.stem} & BARE_WORDS)
        if bound_names:
            names[place] = bound_names
    exceptions = {place: set(words.split()) for place, words in BARE_NAMES.items() if place.startswith(f"{package}/")}
    assert names == exceptions


@pytest.mark.parametrize(
    "source",
    [
        "kept = 1",
        "self._kept = 1",
        "KEPT: int = 1",
        "def asked(): ...",
        "async def told(): ...",
        "def add(given): ...",
        "lambda one: 1",
        "[1 for one in two]",
        "for found in two: pass",
        "with open() as read: pass",
        "if (said := 1): pass",
        "class Held: ...",
        "from two import three as left",
        "try: pass\nexcept OSError as seen: pass",
        "match 1:\n    case [*gone]: pass",
    ],
)
def test_a_bare_name_is_noticed_wherever_it_is_bound(source: str) -> None:
    assert len(bare_names(ast.parse(source))) == 1


@pytest.mark.parametrize("source", ["def read(): ...", "kept_rows = one.left", "call(given=1)"])
def test_a_name_that_says_what_it_is_passes(source: str) -> None:
    assert bare_names(ast.parse(source)) == set()
