"""One job over several containers without ssh: the first of them gathers and leads the others."""
