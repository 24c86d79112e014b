"""The targets on which a job can run, and the class of each."""

# A new target is a module in launcher/targets, and a line here.
TARGETS = {
    "local": "launcher.targets.local:LocalTarget",
    "hosts": "launcher.targets.hosts.target:HostsTarget",
    "compose": "launcher.targets.compose.target:ComposeTarget",
    "kubernetes": "launcher.targets.kubernetes.target:KubernetesTarget",
    "slurm": "launcher.targets.slurm.target:SlurmTarget",
}
