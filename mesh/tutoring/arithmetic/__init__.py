"""Arithmetic by code: exact results for what a student's turn asks, and a verdict on the answer that it offers.

A small language model can't calculate. Knows nothing of language models.
"""

from mesh.tutoring.arithmetic.computation import Computation, compute, open_expressions
from mesh.tutoring.arithmetic.equality import same_number

__all__ = ["Computation", "compute", "open_expressions", "same_number"]
