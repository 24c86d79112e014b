"""How a job is shown to a person or a program: observers of its events."""
