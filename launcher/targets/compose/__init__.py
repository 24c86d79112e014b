"""Jobs in the containers of one Docker Engine, through Docker Compose: one leads, the others join.

services.py renders a job, containers.py finds existing jobs, target.py does the rest.
`docker-compose.yml` in the repository is the same job, for use without the launcher.
"""
