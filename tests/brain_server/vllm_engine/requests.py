"""Requests to an engine, and the recipe of the published adapters, for the tests here."""

import dataclasses

from brain_server.engine.contract import Generation, Sampling
from mesh.adapters.manifest import Recipe
from mesh.lm.chat import Prompt, Role, Turn
from mesh.main_brain.base import BaseModel
from mesh.tutoring.profile import StudentProfile
from testing.models.random_adapters import SPEC, recipe

# Differs from the scaling of training, to show that it reaches vLLM.
SCALE = 0.5
BUCKET = "test-vllm"


def prompt_of(text: str = "Tell me everything about plants, in a very long text.") -> Prompt:
    return Prompt(
        profile=StudentProfile(grade="5"), turns=(Turn(role=Role.STUDENT, text=text),), instruction="You are a tutor."
    )


def greedy(student_id: str | None = None, *, max_tokens: int = 12, deadline: float | None = None) -> Generation:
    return Generation(
        prompt=prompt_of(),
        student_id=student_id,
        deadline=deadline,
        sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
    )


def recipe_of(reference: BaseModel, *, rank: int = SPEC.rank) -> Recipe:
    return dataclasses.replace(recipe(base_digest=reference.digest, rank=rank), scale=SCALE)
