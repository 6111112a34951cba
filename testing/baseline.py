"""A small baseline assessment, and the words of it that must appear nowhere else."""

from typing import Any

# The name in the contract's example, and a word that only this student writes.
NAME = "Alexandrina"
STUDENT_WORD = "zwibbelfish"

# Question, answer, whether it is right, and what the teacher said.
_LESSON = (
    ("What do roots do?", "They drink water.", True, "Well done! Roots hold the plant. They drink water."),
    ("What do leaves do?", "They are green.", False, "Good start! Leaves catch sunlight. They use it to make food."),
    ("What does a stem do?", "It carries water up.", True, "Well done! The stem carries water. It goes to the leaves."),
    ("What is a seed?", "A small stone.", False, "Good start! A seed holds a tiny plant. It also holds food."),
    ("Why do plants need light?", "To make food.", True, "Well done! Plants need light. With light they make food."),
    ("What gas do leaves take in?", "Oxygen.", False, "Good start! Leaves take in carbon dioxide. They give oxygen."),
    ("What do flowers do?", "They make seeds.", True, "Well done! Flowers make seeds. New plants grow from them."),
    ("What do bees carry?", "Honey to flowers.", False, "Good start! Bees carry pollen. It helps flowers make seeds."),
)  # fmt: skip


def start_body(student_id: str, **fields: object) -> dict[str, Any]:
    """The body of `POST /v1/clone/start`: the contract's example with real responses, most with feedback."""
    responses: list[dict[str, object]] = [
        {"item_id": f"plants-{number}", "subject": "Science", "skill": "plants", "question": question,
         "student_answer": f"{answer} {STUDENT_WORD}", "is_correct": is_correct, "teacher_feedback": feedback}
        for number, (question, answer, is_correct, feedback) in enumerate(_LESSON)
    ]  # fmt: skip
    responses.append(
        {"item_id": "plants-own", "subject": "Science", "skill": "plants", "question": "What do plants drink?",
         "reference_answer": "Plants drink water.", "student_answer": "Water.", "is_correct": True}
    )  # fmt: skip
    return {
        "student_id": student_id,
        "student_profile": {"name": NAME, "grade": "5", "disability": "adhd", "learning_style": "visual"},
        "baseline_data": {"assessment_id": "baseline_001", "responses": responses, "overall_score": 75.5},
        **fields,
    }
