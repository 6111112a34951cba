"""Answers that the benchmark of assessment makes or brings: new products, and answers of twelve words."""

import random
from dataclasses import dataclass

from mesh.tutoring.criteria import Criteria

_PRODUCTS = 24
# How a product is asked for.
_QUESTIONS = (
    "What is {} x {}?",
    "Work out {} times {}.",
    "Multiply {} by {}.",
    "{} boxes hold {} pens each. How many pens?",
)
# How an answer is written.
_ANSWERS = ("{}", "It is {}.", "I got {}", "{}!")

# Question, right answer, and an answer of twelve words: right, partly right or wrong.
EVERYDAY_ITEMS = (
    (
        "Why does a puddle dry up on a sunny day?",
        "The sun's heat makes the water evaporate into the air.",
        "The sun warms the water and it goes up in the air.",
    ),
    (
        "Why do we have day and night?",
        "Earth spins, so each place turns toward the sun and away from it.",
        "The sun goes around us and at night it sleeps behind hills.",
    ),
    (
        "What do the roots of a plant do?",
        "Roots hold the plant in the soil and take in water and minerals.",
        "They hold the plant in the ground so wind cannot blow it.",
    ),
    (
        "Why is a metal spoon in hot soup warm at its handle?",
        "Heat is conducted through the metal from the soup to the handle.",
        "Because heat moves along the metal from the soup to the handle.",
    ),
    (
        "Why did people settle near rivers long ago?",
        "Rivers gave water for drinking and farming, food, and a way to travel.",
        "They needed water to drink and for their fields and animals too.",
    ),
    (
        "What makes the sound when you pluck a guitar string?",
        "The string vibrates and makes the air vibrate.",
        "The wood of the guitar is hollow so the sound lives inside.",
    ),
    (
        "Why does a heavy coat keep you warm?",
        "It traps air, which slows the loss of your body heat.",
        "The coat keeps the warm air of my body close to me.",
    ),
    (
        "What is the job of the heart?",
        "The heart pumps blood through the body.",
        "It thinks and feels when you are sad, happy or in love.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An answer to a multiplication."""

    criteria: Criteria
    answer: str
    is_right: bool


def new_products(*, seed: int = 7) -> list[Product]:
    """Returns answers to multiplications, half of them right; wrong ones are off by one factor or a slip."""
    draws = random.Random(seed)
    products = []
    pairs = [(first, second) for first in range(3, 26) for second in range(6, 20)]
    for place, (first, second) in enumerate(draws.sample(pairs, _PRODUCTS)):
        result = first * second
        is_right = place % 2 == 0
        offer = result if is_right else result + draws.choice((-first, first, -second, second, -1, 1, 10, -10))
        criteria = Criteria(
            question=_QUESTIONS[place % len(_QUESTIONS)].format(first, second), reference_answer=str(result)
        )
        answer = _ANSWERS[place // 2 % len(_ANSWERS)].format(offer)
        products.append(Product(criteria=criteria, answer=answer, is_right=is_right))
    return products
