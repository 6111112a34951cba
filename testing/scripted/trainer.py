"""A scripted trainer: a test sets its steps, errors and pauses; it returns a real, small adapter."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import numpy as np
from safetensors.numpy import save

from cloning_server.clone import CloneState
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.training import Progress, TrainedAdapter, TrainerFacts, TrainingPlan
from mesh.adapters.manifest import Examples, Lora, Metrics, Profile, Recipe, Serving

STATES = (
    CloneState.LOADING_BASE_MODEL,
    CloneState.CREATING_ADAPTER,
    CloneState.FINE_TUNING,
    CloneState.OPTIMIZING,
)
STEPS = 8
FACTS = TrainerFacts(
    ready=True,
    reason="",
    model="SmolLM2-135M-Instruct",
    device="cpu",
    gpu_available=False,
    main_brain="0" * 64,
)


class Gate:
    """Every training waits here while the gate is shut."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._open.wait()


class ScriptedTrainer:
    """Trains nothing.

    Attributes:
        facts: What health says.
        seats: How many trainings it has room for; no limit unless a test sets one.
        gates: One before the first step of each state.
        faults: Each training removes the first, if there is one, and fails with it in the middle of fine-tuning.
        plans: The plans of all trainings, in order.
        stopped_clones: Ids of the clones whose training was cut off.
        cut_off: Is set when a training is cut off.
    """

    def __init__(self) -> None:
        self.facts = FACTS
        self.seats = 1_000
        self.gates = {state: Gate() for state in STATES}
        self.faults: deque[Exception] = deque()
        self.plans: list[TrainingPlan] = []
        self.stopped_clones: list[str] = []
        self.cut_off = asyncio.Event()

    async def train(self, plan: TrainingPlan) -> AsyncGenerator[Progress | TrainedAdapter, None]:
        self.plans.append(plan)
        is_complete = False
        try:
            fault = self.faults.popleft() if self.faults else None
            for state in STATES:
                await self.gates[state].wait()
                for step in range(STEPS + 1):
                    if fault and state is CloneState.FINE_TUNING and step > STEPS / 2:
                        raise fault
                    yield Progress(state=state, fraction=step / STEPS, message=f"step {step} of {STEPS}")
            is_complete = True
            yield TrainedAdapter(weights=weights_for(plan), recipe=recipe_for(plan))
        finally:
            if not is_complete:
                self.stopped_clones.append(plan.clone_id)
                self.cut_off.set()


def weights_for(plan: TrainingPlan) -> bytes:
    """A one-layer adapter with PEFT's names; its values differ for each clone."""
    random = np.random.default_rng(list(plan.clone_id.encode()))
    tensors = {}
    for target in plan.target_modules:
        module = f"base_model.model.model.layers.0.self_attn.{target}"
        tensors[f"{module}.lora_A.weight"] = random.standard_normal((plan.rank, 4), dtype=np.float32)
        tensors[f"{module}.lora_B.weight"] = random.standard_normal((4, plan.rank), dtype=np.float32)
    return save(tensors)


def recipe_for(plan: TrainingPlan) -> Recipe:
    """The recipe of the small adapter for a plan."""
    responses = len(plan.baseline.responses)
    return Recipe(
        clone_id=plan.clone_id,
        base_model=FACTS.model,
        base_digest="0" * 64,
        lora=Lora(rank=plan.rank, alpha=plan.alpha, target_modules=plan.target_modules, dtype="F32"),
        scale=1.25,
        serving=Serving(temperature=0.7, top_p=0.9, max_tokens=128),
        examples=Examples(given=responses, feedback=0, distilled=responses, dropped=0, train=responses - 1, heldout=1),
        metrics=Metrics(
            heldout_loss_base=2.5, heldout_loss_adapter=1.5, train_steps=9, seconds_per_step=0.1, seconds=1.0
        ),
        seed=plan.seed,
        profile=Profile(grade="5"),
        data_digest="1" * 64,
        start=plan.start,
        policy=compute_policy(plan.baseline, earlier=plan.earlier_policy),
    )
