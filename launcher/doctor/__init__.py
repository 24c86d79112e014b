"""`launcher doctor`: checks everything that a job needs, and prints a fix for what is broken."""
