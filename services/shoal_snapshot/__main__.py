"""Starts the snapshot service: `python -m shoal_snapshot`."""

import os
from pathlib import Path

import click

from shoal.blobs.opening import open_store
from shoal.runtime.options import Settings, service_options, state_option, template_roots_option
from shoal.runtime.places import usable
from shoal.runtime.process import Context, serve
from shoal.wire.quantities import BadValueError
from shoal_snapshot.service import run


def _default_state() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "shoal" / "snapshots"


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@service_options
@state_option
@click.option(
    "--blobs",
    envvar="SHOAL_BLOBS",
    show_envvar=True,
    metavar="URL",
    help="Where disks and snapshots are kept, the same for all; such as file:///srv/blobs. Default: in its directory.",
)
@template_roots_option("dir:, tar:, docker-archive: and oci:")
@click.option("--state", envvar="SHOAL_STATE", show_envvar=True, type=click.Path(path_type=Path), help="Its directory.")
def main(
    settings: Settings, blobs: str | None, state: Path | None, what_is_left: bool, template_roots: tuple[Path, ...]
) -> None:
    """Resolve and make templates until SIGTERM. Any number may run: one does the work, the others stand by."""
    place = (state or _default_state()).absolute()
    try:
        store = open_store(blobs or (place / "blobs").as_uri())
    except BadValueError as error:
        raise click.UsageError(f"--{error}") from None
    usable(place)

    async def serving(context: Context) -> None:
        try:
            await run(context, store, place / "scratch", what_is_left, template_roots)
        finally:
            await store.close()

    serve("snapshot", settings, serving)


if __name__ == "__main__":
    main()
