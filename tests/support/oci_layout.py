"""Makes OCI images out of a root file system: python3 oci_layout.py ROOT OUT, with OUT/layout, OUT/oci.tar and OUT/docker*.tar."""

import gzip, hashlib, io, json, os, sys, tarfile

root, out = sys.argv[1:]
blobs = os.path.join(out, "layout/blobs/sha256")
os.makedirs(blobs)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def put(data, media_type):
    with open(os.path.join(blobs, digest(data)[7:]), "wb") as file:
        file.write(data)
    return {"mediaType": "application/vnd.oci.image." + media_type, "digest": digest(data), "size": len(data)}


def archive(fill):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        fill(tar)
    return stream.getvalue()


def add(tar, name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.size = 0o644, 1000000000, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def owned_by_root(info):
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)
    return info


def lower(tar):
    tar.add(root, ".", filter=owned_by_root)
    add(tar, "layers/removed", b"never seen")
    add(tar, "layers/replaced", b"below")
    add(tar, "opaque/below", b"never seen")
    add(tar, "owned", b"owned\n", uid=1234, gid=4321, mode=0o4755)


def upper(tar):
    add(tar, "layers/.wh.removed")
    add(tar, "layers/replaced", b"above\n")
    add(tar, "opaque/.wh..wh..opq")
    add(tar, "opaque/above", b"above\n")
    add(tar, "linked", type=tarfile.LNKTYPE, linkname="owned")


layers = [archive(lower), archive(upper)]
config = {
    "architecture": "amd64",
    "created": "2033-05-18T03:33:20Z",
    "os": "linux",
    "config": {
        "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=some words", "QUOTED=a $b \"c\""],
        "Entrypoint": ["/bin/echo", "entry point:"],
        "Cmd": ["its own", "words"],
        "Labels": {"maker": "somebody"},
    },
    "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
}
config = json.dumps(config).encode()
manifest = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": put(config, "config.v1+json"),
    "layers": [put(gzip.compress(layer, 1, mtime=0), "layer.v1.tar+gzip") for layer in layers],
}
image = put(json.dumps(manifest).encode(), "manifest.v1+json")
image["annotations"] = {"org.opencontainers.image.ref.name": "made"}
with open(os.path.join(out, "layout/index.json"), "w") as file:
    json.dump({"schemaVersion": 2, "manifests": [image]}, file)
with open(os.path.join(out, "layout/oci-layout"), "w") as file:
    file.write('{"imageLayoutVersion":"1.0.0"}')
with tarfile.open(os.path.join(out, "oci.tar"), "w") as tar:
    for name in sorted(os.listdir(os.path.join(out, "layout"))):
        tar.add(os.path.join(out, "layout", name), name)


def docker(tar, names):
    add(tar, "config.json", config)
    saved = {"Config": "config.json", "RepoTags": ["made:latest"], "Layers": names}
    add(tar, "manifest.json", json.dumps([saved]).encode())


with tarfile.open(os.path.join(out, "docker.tar"), "w") as tar:
    add(tar, "lower/layer.tar", layers[0])
    add(tar, "upper/layer.tar", layers[1])
    docker(tar, ["lower/layer.tar", "upper/layer.tar"])
with tarfile.open(os.path.join(out, "docker-links.tar"), "w") as tar:
    add(tar, "lower/layer.tar", layers[0])
    add(tar, "upper.tar.gz", gzip.compress(layers[1], 1))
    add(tar, "link/layer.tar", type=tarfile.SYMTYPE, linkname="../lower/layer.tar")
    docker(tar, ["link/layer.tar", "upper.tar.gz"])
