"""Jobs on several machines over ssh.

preflight.py checks the hosts by what probe.py reports on each of them, target.py starts the ranks.
"""
