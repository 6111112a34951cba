"""Training on Ray: the actors, who keeps them alive, and the trainings that share one."""
