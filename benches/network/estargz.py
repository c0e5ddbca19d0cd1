"""Makes the layers of an image in an OCI layout eStargz, for the work `estargz` of this bench.

    python3 estargz.py LAYOUT OUT
    skopeo copy --dest-tls-verify=false oci:OUT docker://127.0.0.1:5000/cuda:estargz

Each file, and each 4 MiB of a long one, is a gzip member of its own; a table of contents and a footer that says where it is
are at the end. https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
"""

import base64
import gzip
import hashlib
import io
import json
import sys
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK_BYTES = 4 << 20
LEVEL = 4
TOC_NAME = "stargz.index.json"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
KINDS = {
    tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink", tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo",
}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(data):
    """One gzip member."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


class Writer:
    """A layer that is being written. Members are compressed by several threads and written in their order."""

    def __init__(self, path):
        self.file = path.open("wb")
        self.pool = ThreadPoolExecutor()
        self.waiting = []
        self.stored, self.plain = hashlib.sha256(), hashlib.sha256()
        self.length = 0
        self.open = bytearray()
        self.toc = []

    def put(self, data):
        self.stored.update(data)
        self.length += len(data)
        self.file.write(data)

    def end_member(self, entry=None):
        """Ends the member that is open. `entry` is told where the next one begins."""
        if self.open:
            self.plain.update(self.open)
            self.waiting.append((self.pool.submit(member, bytes(self.open)), None))
            self.open = bytearray()
        if entry is not None:
            self.waiting.append((None, entry))
        self.settle(64)

    def settle(self, most):
        while len(self.waiting) > most:
            packed, entry = self.waiting.pop(0)
            if entry is not None:
                entry["offset"] = self.length
            else:
                self.put(packed.result())

    def add(self, info, header, content):
        self.open += header
        entry = {
            "name": info.name.removeprefix("./") + ("/" if info.isdir() else ""), "type": KINDS.get(info.type, "reg"),
            "modtime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(info.mtime))), "mode": info.mode,
            "uid": info.uid, "gid": info.gid, "userName": info.uname, "groupName": info.gname,
        }
        if info.issym() or info.islnk():
            entry["linkName"] = info.linkname.removeprefix("./") if info.islnk() else info.linkname
        if info.ischr() or info.isblk():
            entry |= {"devMajor": info.devmajor, "devMinor": info.devminor}
        attributes = {name[13:]: value for name, value in info.pax_headers.items() if name.startswith("SCHILY.xattr.")}
        if attributes:
            entry["xattrs"] = {
                name: base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
                for name, value in attributes.items()
            }
        self.toc.append(entry)
        if not info.isreg() or info.size == 0:
            return
        entry["size"] = info.size
        whole, at = hashlib.sha256(), 0
        while chunk := content.read(CHUNK_BYTES):
            part = entry if at == 0 else {"name": entry["name"], "type": "chunk"}
            if at:
                self.toc.append(part)
            self.end_member(part)
            whole.update(chunk)
            part |= {"chunkDigest": digest(chunk)}
            if info.size > CHUNK_BYTES:
                part |= {"chunkOffset": at, "chunkSize": len(chunk)}
            self.open += chunk
            at += len(chunk)
        entry["digest"] = "sha256:" + whole.hexdigest()
        self.open += b"\0" * (-info.size % tarfile.BLOCKSIZE)

    def end(self):
        """Writes the table and the footer. Returns the digests of the layer, of what it decompresses to, of the table."""
        self.end_member()
        self.settle(0)
        table = json.dumps({"version": 1, "entries": self.toc}).encode()
        info = tarfile.TarInfo(TOC_NAME)
        info.size = len(table)
        tar = info.tobuf() + table + b"\0" * (-len(table) % tarfile.BLOCKSIZE) + b"\0" * 2 * tarfile.BLOCKSIZE
        self.plain.update(tar)
        offset = self.length
        self.put(member(tar))
        # An empty member, whose extra field says where the table begins.
        extra = b"SG" + (22).to_bytes(2, "little") + f"{offset:016x}STARGZ".encode()
        footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra + b"\x01\0\0\xff\xff" + bytes(8)
        self.put(footer)
        self.file.close()
        return "sha256:" + self.stored.hexdigest(), "sha256:" + self.plain.hexdigest(), digest(table)


def convert(source, out):
    """One layer, into a file in the directory `out`."""
    path = out / "layer.part"
    writer = Writer(path)
    with gzip.open(source) as stream, tarfile.open(fileobj=io.BufferedReader(stream, 1 << 20), mode="r|") as tar:
        for info in tar:
            header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            writer.add(info, header, tar.extractfile(info) if info.isreg() else None)
    stored, plain, table = writer.end()
    path.rename(out / stored.removeprefix("sha256:"))
    return stored, plain, table, writer.length


def main():
    layout, out = Path(sys.argv[1]), Path(sys.argv[2])
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def read(descriptor):
        return json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_text())

    def write(value):
        text = json.dumps(value).encode()
        (blobs / digest(text).removeprefix("sha256:")).write_bytes(text)
        return {"digest": digest(text), "size": len(text)}

    index = json.loads((layout / "index.json").read_text())
    manifest = read(index["manifests"][0])
    config = read(manifest["config"])
    plain_digests, layers = [], []
    for layer in manifest["layers"]:
        stored, plain, table, length = convert(layout / "blobs" / layer["digest"].replace(":", "/"), blobs)
        plain_digests.append(plain)
        layers.append({**layer, "digest": stored, "size": length, "annotations": {TOC_DIGEST: table}})
    config["rootfs"]["diff_ids"] = plain_digests
    manifest |= {"config": {**manifest["config"], **write(config)}, "layers": layers}
    index["manifests"] = [{**index["manifests"][0], **write(manifest)}]
    (out / "index.json").write_text(json.dumps(index))
    (out / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    main()
