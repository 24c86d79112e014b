"""The flags for jobs whose ranks run in containers: Docker Compose and Kubernetes.

What is asked for less often stands in the tables `[container]` and `[kubernetes]` of `--config`.
"""

from typing import Annotated, Any

import typer

from launcher.errors import UsageError

_WHERE = {"rich_help_panel": "Where"}
_CONTAINERS = {"rich_help_panel": "Containers and Kubernetes"}


def container_fields(
    target: Annotated[
        str | None,
        typer.Option(
            help="local, hosts, compose or kubernetes.",
            show_default="hosts where there are any, else local",
            **_WHERE,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="The image.", show_default="that of our Dockerfile", **_CONTAINERS),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Ranks per container.", show_default="1", **_CONTAINERS)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="job, jobset, mpijob or trainjob.", show_default="job", **_CONTAINERS),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(help="Of the cluster.", show_default="the context's", **_CONTAINERS),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Of the kubeconfig.", show_default="the current one", **_CONTAINERS),
    ] = None,
    node_selector: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE. Repeatable.", **_CONTAINERS)
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(help="The pods' own.", **_CONTAINERS)
    ] = None,
    pull_secret: Annotated[
        list[str] | None, typer.Option(help="For the image. Repeatable.", **_CONTAINERS)
    ] = None,
    env_secret: Annotated[
        list[str] | None,
        typer.Option(help="A Secret whose keys become environment. Repeatable.", **_CONTAINERS),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(help="CLAIM:/PATH or CLAIM:/PATH:ro. Repeatable.", **_CONTAINERS),
    ] = None,
    priority_class: Annotated[str | None, typer.Option(help="Of the pods.", **_CONTAINERS)] = None,
    queue: Annotated[
        str | None, typer.Option(help="The Kueue queue that admits the job.", **_CONTAINERS)
    ] = None,
    time_limit: Annotated[
        int | None,
        typer.Option(help="Seconds the job may take.", show_default="no limit", **_CONTAINERS),
    ] = None,
) -> dict[str, Any]:
    """The fields of a JobSpec that these flags give; None where one was not given."""
    return {
        "target": target,
        "container": {"image": image, "slots": slots},
        "kubernetes": {
            "kind": kind,
            "namespace": namespace,
            "context": context,
            "node_selector": dict(_pair(label) for label in node_selector or ()),
            "service_account": service_account,
            "pull_secrets": pull_secret,
            "secrets": env_secret,
            "volumes": [_volume(entry) for entry in volume] if volume else None,
            "priority_class": priority_class,
            "queue": queue,
            "time_limit": time_limit,
        },
    }


def _pair(label: str) -> tuple[str, str]:
    name, equals, value = label.partition("=")
    if not equals:
        raise UsageError(f"--node-selector: expected LABEL=VALUE. Received: {label!r}")
    return name, value


def _volume(entry: str) -> dict[str, Any]:
    claim, _, rest = entry.partition(":")
    path, _, mode = rest.partition(":")
    if not path or mode not in {"", "ro"}:
        raise UsageError(f"--volume: expected CLAIM:/PATH or CLAIM:/PATH:ro. Received: {entry!r}")
    return {"claim": claim, "path": path, "read_only": mode == "ro"}
