"""`launcher doctor`: looks at everything a job stands on, and says what mends what is broken."""
