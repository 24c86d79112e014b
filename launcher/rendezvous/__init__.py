"""One job over several containers without ssh: the first container leads, the others join it."""
