"""What a clone learns from: briefs, distilled replies and their checks."""
