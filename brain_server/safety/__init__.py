"""Screens what students and models write: rules, the guard, and what is sent in place of a harmful reply."""
