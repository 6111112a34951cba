"""How fast and how well: the targets, each measured beside what it is compared with."""
