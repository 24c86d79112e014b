"""What a person or a program sees of a job: observers of its events."""
