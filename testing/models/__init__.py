"""Small base models, random adapters, and reference replies to compare with."""
