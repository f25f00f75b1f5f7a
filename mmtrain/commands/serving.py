"""`mmtrain serve`: models behind HTTP, until Ctrl-C."""

from typing import Annotated

import typer

from mmtrain.commands.options import Address


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL ...", help="Run folders, bundle folders or models:/NAME@ALIAS."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_534, help="Port to listen on.")] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes that answer, each with all models.")
    ] = 1,
    cpus: Annotated[float, typer.Option(min=0.01, help="CPUs of a replica.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of a replica, e.g. 0.5.")] = 0.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 32,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0.0, help="Longest wait for others to join a batch.")
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests of a replica at once; more get status 429.")
    ] = 128,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest time for a request, in seconds.")
    ] = 30.0,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file, in MB.")] = 32,
    token: Annotated[
        str | None,
        typer.Option(envvar="MMTRAIN_TOKEN", help="Bearer token that requests must bring."),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(help="MLflow URI of the registry; default: MODEL's own."),
    ] = None,
    address: Address = None,
) -> None:
    """Serve models over HTTP: a page at /, an API at /docs."""
    from mmtrain.serving.config import Limits, ServingConfig
    from mmtrain.serving.networks import find_sources
    from mmtrain.serving.serve import ServerPlace, serve_forever

    config = ServingConfig.model_validate(
        {
            "max_batch": max_batch,
            "batch_wait_ms": batch_wait_ms,
            "max_queue": max_queue,
            "timeout_s": timeout,
            "token": token,
            "limits": Limits(max_upload_bytes=max_upload_mb * 2**20),
        }
    )
    place = ServerPlace(host, port, replicas=replicas, cpus=cpus, gpus=gpus, address=address)
    serve_forever(find_sources(models, tracking_uri=tracking), config=config, place=place)
