"""Jobs in the containers of one Docker engine, through Docker Compose: one leads, the others join.

services.py renders a job, containers.py asks the engine about jobs that are there, target.py does
the rest. `docker-compose.yml` in the repository is the same job, to be used without the launcher.
"""
