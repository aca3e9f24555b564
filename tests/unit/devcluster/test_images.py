"""The development images contain only folders, and mount everything below one path."""

import json
import tarfile
from pathlib import Path

from devcluster import images


def test_the_archive_contains_every_image_with_a_non_root_user(tmp_path: Path) -> None:
    pause = tmp_path / "pause"
    pause.write_bytes(b"binary")
    images.write_archive(tmp_path / "images.tar", pause)

    with tarfile.open(tmp_path / "images.tar") as archive:
        members = {name: archive.extractfile(name) for name in archive.getnames()}
        manifest = json.loads(members["manifest.json"].read())  # type: ignore[union-attr]
        configs = {
            image["RepoTags"][0]: json.loads(members[image["Config"]].read())["config"]  # type: ignore[union-attr]
            for image in manifest
        }
    assert set(configs) == {images.PAUSE_IMAGE, images.OPERATOR_IMAGE, images.TRAINER_IMAGE}
    for reference in (images.OPERATOR_IMAGE, images.TRAINER_IMAGE):
        assert configs[reference]["User"] == "65532"
        assert configs[reference]["Entrypoint"][0].startswith("/opt/finetune/python/")


def test_nothing_is_mounted_where_a_pods_own_tmp_would_hide_it() -> None:
    destinations = [mount["destination"] for mount in images.mounts()]

    assert not [path for path in destinations if path.startswith(("/tmp", "/home"))]
    assert all("ro" in mount["options"] for mount in images.mounts())
