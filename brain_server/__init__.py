"""The Main Brain: a server that answers each student with the student's own adapter."""
