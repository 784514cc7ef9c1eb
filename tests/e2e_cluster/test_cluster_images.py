import hashlib
import json
import tarfile
from pathlib import Path

from image_build.main import cache_folder
from tandem_cluster import images


def test_the_box_archive_is_an_oci_layout_whose_digests_hold(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"static program")
    images.write_box_archive(tmp_path / "box.tar", program)

    with tarfile.open(tmp_path / "box.tar") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    index = json.loads(files["index.json"])
    assert index["manifests"][0]["annotations"] == {"io.containerd.image.name": images.BOX}
    manifest = json.loads(_blob(files, index["manifests"][0]))
    config = json.loads(_blob(files, manifest["config"]))
    layer = _blob(files, manifest["layers"][0])
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]

    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        box = tar.getmember("box")
        assert box.mode == 0o755
        assert tar.extractfile(box).read() == b"static program"  # type: ignore[union-attr]


def test_layers_are_kept_where_everything_else_is() -> None:
    """Symptom: gigabytes of layers came to the home folder, whatever TANDEM_CACHE said."""
    assert cache_folder({"TANDEM_CACHE": "/big/disk", "XDG_CACHE_HOME": "/other"}) == Path("/big/disk/e2e/images")
    assert cache_folder({}) == Path.home() / ".cache/tandem/e2e/images"


def _blob(files: dict[str, bytes], descriptor: dict[str, str | int]) -> bytes:
    blob = files["blobs/" + str(descriptor["digest"]).replace(":", "/")]
    assert "sha256:" + hashlib.sha256(blob).hexdigest() == descriptor["digest"]
    assert len(blob) == descriptor["size"]
    return blob
