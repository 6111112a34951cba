"""What a clone learns from: lessons, distilled replies and their checks."""
