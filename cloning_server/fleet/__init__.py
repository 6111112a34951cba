"""Training on Ray: the actors, their supervisors, and the trainings that share an actor."""
