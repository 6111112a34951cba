"""Held-out loss of the Main Brain and of its plain base model, on lessons' replies and on plain text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from benchmarks.figures import Figure, Goal
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import packs_of
from cloning_server.learning.passes import Passes
from curriculum.answers import read_explained
from curriculum.lesson import Lesson
from curriculum.prompts import prompt_of
from mesh.lm.chat import Example, encode_example, end_of_turn
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings

_PACK = 8
_GENERAL = "general_loss"
_BASE = "the base model without a tutor"


def loss_figures(settings: BaseModelSettings, lessons: Sequence[Lesson], plain: Path | None) -> Iterator[Figure]:
    """Yields the loss of all lessons, of each kind, and of the sentences of EntailmentBank if a file of it is given."""
    brain = _load(settings, roles_folders(settings.roles_dir))
    brain_losses, brain_digest = _losses(brain, lessons, plain), brain.digest
    # Two models never take memory at once.
    del brain
    base = _load(settings, ())
    base_losses = brain_losses if base.digest == brain_digest else _losses(base, lessons, plain)
    for name, loss in brain_losses.items():
        goal = Goal(of="ratio", at_most=1.02) if name == _GENERAL else None
        if name == "lesson_loss":
            goal = Goal(of="ratio", at_most=0.75)
        yield Figure(
            figure=name,
            value=loss,
            unit="nats/token",
            baseline=base_losses[name],
            baseline_of=_BASE,
            goal=goal,
            facts={"has_tutor": base.digest != brain_digest},
        )


def plain_examples(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
    """Yields question, answer and facts of each line of EntailmentBank as plain text."""
    for explained in read_explained(path):
        text = f"{explained.question} {explained.answer} {'. '.join(explained.facts)}."
        tokens = (*tokenizer(text, add_special_tokens=False)["input_ids"], end_of_turn(tokenizer))
        yield Example(tokens=tokens, reply_start=1)


def _load(settings: BaseModelSettings, roles_dirs: Sequence[Path]) -> BaseModel:
    return load_base(
        settings.base_model,
        cache_dir=settings.model_cache_dir,
        roles_dirs=roles_dirs,
        device=settings.device,
        dtype=settings.dtype,
    )


def _losses(base: BaseModel, lessons: Sequence[Lesson], plain: Path | None) -> dict[str, float]:
    passes = Passes(base.model)
    examples = {"lesson_loss": _lesson_examples(lessons, base)}
    for kind in sorted({lesson.kind for lesson in lessons}):
        members = [lesson for lesson in lessons if lesson.kind is kind]
        examples[f"{kind}_lesson_loss"] = _lesson_examples(members, base)
    if plain is not None:
        examples[_GENERAL] = list(plain_examples(plain, base.tokenizer))
    return {
        name: heldout_loss(passes, packs_of(members, _PACK, device=passes.device), None)
        for name, members in examples.items()
    }


def _lesson_examples(lessons: Sequence[Lesson], base: BaseModel) -> list[Example]:
    return [encode_example(base.tokenizer, prompt_of(lesson), lesson.reply) for lesson in lessons]
