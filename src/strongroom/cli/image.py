"""`strongroom image`: what a container image holds, and what it measures as a program's file system."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from strongroom.cli import output
from strongroom.cli.workspace import Home
from strongroom.enclave.image import ImageCache, Unpacked, layout_of
from strongroom.enclave.oci import open_image
from strongroom.enclave.oci_layers import MAX_BYTES, MAX_FILES, measure_tree, unpack
from strongroom.enclave.sandbox import require_linux
from strongroom.errors import UsageError, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "LAYOUT is an OCI image layout, as `skopeo copy docker://NAME oci:LAYOUT` and `docker buildx build --output "
        "type=oci,tar=false,dest=LAYOUT` write it. Nothing of it is run. Example: strongroom image LAYOUT --digest "
        "sha256:... --unpack tree"
    )
    parser.add_argument("layout", metavar="LAYOUT[:TAG]", help="a directory with index.json and blobs")
    parser.add_argument("--reference", default="", metavar="NAME", help="which of several images, by its annotation")
    parser.add_argument("--digest", default="", metavar="sha256:...", help="refuse any other image")
    parser.add_argument("--unpack", type=Path, metavar="DIR", help="unpack it into this new directory")
    parser.add_argument(
        "--max-bytes", type=int, default=MAX_BYTES, metavar="N", help="of all files (default: %(default)s)"
    )
    parser.add_argument("--max-files", type=int, default=MAX_FILES, metavar="N", help="default: %(default)s")
    output.add_json(parser)


def add_image(parser: argparse.ArgumentParser) -> None:
    """The option that says which image is the program's root, and where it lies."""
    parser.add_argument(
        "--image",
        metavar="LAYOUT[:TAG]",
        help="the program's root is this container image; with --policy, where the image that it names lies",
    )


def image_of(args: argparse.Namespace, home: Home, *, digest: str = "") -> Unpacked | None:
    """The image that the options name, unpacked; with `digest`, that of a policy, it may have been unpacked earlier.

    Raises:
        UsageError: the policy names an image and there is none here, or none and the options name one.
        TamperedError: it is another one.
    """
    if args.policy and args.image and not digest:
        raise UsageError("--image: the policy names none", hint='image = "sha256:..." in its table [program]')
    cache = ImageCache(home.path / "images")
    if args.image is None:
        return cache.found(digest) if digest else None
    require_linux()
    layout, reference = layout_of(args.image)
    return cache.unpacked(layout, reference=reference, digest=digest)


def run(args: argparse.Namespace) -> int:
    require_linux()  # others keep neither permission bits nor all names
    for name in ("max_bytes", "max_files"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}: got {getattr(args, name)}, wanted 1 or more")
    layout, tag = layout_of(args.layout, "image")
    if tag and args.reference not in ("", tag):
        raise UsageError(f"--reference: got {args.reference}, and LAYOUT:TAG says {tag}", hint="give one of them")
    image = open_image(layout, reference=tag or args.reference, digest=args.digest)
    with tempfile.TemporaryDirectory(prefix="strongroom-image-") as scratch:
        tree = args.unpack or Path(scratch, "tree")
        unpack(image, tree, max_bytes=args.max_bytes, max_files=args.max_files)
        part = measure_tree(tree)
    told = {
        "image": image.digest,
        "measurement": part.digest.hex(),
        "files": part.files,
        "bytes": part.size,
        "layers": len(image.layers),
        "entrypoint": list(image.entrypoint),
        "arguments": list(image.arguments),
        "environment": dict(image.environment),
        "directory": image.directory,
        "volumes": list(image.volumes),
        "user": image.user,
    }
    if args.json:
        output.result(told)
        return 0
    rows = [
        ("image", image.digest),
        ("measurement", part.digest.hex()),
        ("content", f"{part.files:,} files, directories and links, {part.size:,} bytes, layers: {len(image.layers)}"),
        ("command", shlex.join(image.command) or "none"),
        *(("variable", f"{name}={value}") for name, value in image.environment.items()),
        ("starts in", image.directory),
        *(("volume", path) for path in image.volumes),
        *([("user", image.user)] if image.user else []),
    ]
    for name, value in rows:
        output.stdout.print(f"{name:<12} {printable(value)}", markup=False, soft_wrap=True, highlight=False)
    if args.unpack is not None:
        output.note(f"unpacked into {args.unpack}")
    return 0
