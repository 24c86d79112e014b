"""What is kept of every run, in a directory of its own: who writes it, and who reads it back."""
