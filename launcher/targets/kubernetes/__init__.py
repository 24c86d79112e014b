"""Jobs on a Kubernetes cluster.

Rendering is pure: job.py, jobset.py, mpijob.py and trainjob.py turn a JobSpec into manifests, from
the pods of pods.py. Sending and watching is separate: cluster.py calls the API server, submit.py,
watch.py and logs.py use it, causes.py names what went wrong.
"""
