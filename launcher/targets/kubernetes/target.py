"""The target behind `--target kubernetes`: renders a job, submits it, and knows where it went."""

import yaml

from launcher.spec import JobSpec
from launcher.targets.base import Target
from launcher.targets.kubernetes import manifests
from launcher.targets.kubernetes.kinds import KINDS
from launcher.targets.kubernetes.manifests import Manifest


class KubernetesTarget(Target):
    """A job for a cluster. Everything the job says is checked before the cluster hears of it."""

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        manifests.check(spec)
        self.kind = KINDS[spec.kubernetes.kind]

    def check(self) -> None:
        from launcher.targets.kubernetes.cluster import Cluster

        place = self.spec.kubernetes
        Cluster.connect(place.context, place.namespace).check(self.kind)

    def manifests(self) -> list[Manifest]:
        """The objects to create, in this order; the job itself comes last."""
        return self.kind.manifests(self.spec)

    def render(self) -> str:
        return yaml.safe_dump_all(self.manifests(), sort_keys=False, width=100).rstrip("\n")
