"""Assesses students' answers: verdicts and feedback."""
