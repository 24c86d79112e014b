"""Jobs on a Kubernetes cluster.

Rendering is pure: job.py, jobset.py, mpijob.py and trainjob.py turn a JobSpec into manifests, with
the pods of pods.py. Submitting and watching are separate: cluster.py calls the API server,
submit.py, watch.py and logs.py use it, causes.py finds the cause of a failure.
"""
