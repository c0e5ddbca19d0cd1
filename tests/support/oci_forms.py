"""Writes the layers of an OCI layout in another form: python3 oci_forms.py LAYOUT OUT tar|estargz."""

import datetime, gzip, hashlib, io, json, os, sys, tarfile

source, target, form = sys.argv[1:]
os.makedirs(os.path.join(target, "blobs/sha256"))
KINDS = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink", tarfile.REGTYPE: "reg"}
CHUNK = 4096


def get(descriptor):
    with open(os.path.join(source, "blobs/sha256", descriptor["digest"][7:]), "rb") as file:
        return file.read()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def put(data, media_type, **annotations):
    with open(os.path.join(target, "blobs/sha256", sha256(data)[7:]), "wb") as file:
        file.write(data)
    media_type = "application/vnd.oci.image." + media_type
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), "annotations": annotations}


def toc_entry(info):
    time = datetime.datetime.fromtimestamp(int(info.mtime), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    nanos = str(info.pax_headers.get("mtime", "")).partition(".")[2]
    entry = {"name": info.name, "type": KINDS[info.type], "mode": info.mode, "uid": info.uid, "gid": info.gid}
    time += "." + nanos + "Z" if nanos else "Z"
    return entry | {"modtime": time, "linkName": info.linkname, "size": info.size if info.isreg() else 0}


def estargz(layer):
    """A member of gzip for each header and each chunk, then the table, then the footer that says where it is."""
    out, entries, done = bytearray(), [], 0
    tar = tarfile.open(fileobj=io.BytesIO(layer))
    for info in tar:
        entry = toc_entry(info)
        out += gzip.compress(layer[done : info.offset_data], 6, mtime=0)
        done = info.offset_data + (info.size if info.isreg() else 0)
        if not (info.isreg() and info.size):
            entries.append(entry)
            continue
        content = layer[info.offset_data : done]
        for start in range(0, len(content), CHUNK):
            chunk = content[start : start + CHUNK]
            place = {"offset": len(out), "chunkOffset": start, "chunkSize": len(chunk), "chunkDigest": sha256(chunk)}
            entries.append((entry if start == 0 else {"name": info.name, "type": "chunk"}) | place)
            out += gzip.compress(chunk, 6, mtime=0)
    out += gzip.compress(b"\0" * (-done % 512), 6, mtime=0)
    table = json.dumps({"version": 1, "entries": entries}).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("stargz.index.json")
        info.size = len(table)
        archive.addfile(info, io.BytesIO(table))
    place = b"%016xSTARGZ" % len(out)
    out += gzip.compress(stream.getvalue(), 6, mtime=0)
    out += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0" + place + b"\1\0\0\xff\xff" + b"\0" * 8
    return bytes(out), {"containerd.io/snapshot/stargz/toc.digest": sha256(table)}


index = json.load(open(os.path.join(source, "index.json")))
manifest = json.loads(get(index["manifests"][0]))
config = get(manifest["config"])
layers = [gzip.decompress(get(layer)) for layer in manifest["layers"]]
config = json.loads(config)
if form == "estargz":
    made = [estargz(layer) for layer in layers]
    # The table is a part of what a layer decompresses to.
    config["rootfs"]["diff_ids"] = [sha256(gzip.decompress(layer)) for layer, _ in made]
    manifest["layers"] = [put(layer, "layer.v1.tar+gzip", **notes) for layer, notes in made]
else:
    manifest["layers"] = [put(layer, "layer.v1.tar") for layer in layers]
manifest["config"] = put(json.dumps(config).encode(), "config.v1+json")
image = put(json.dumps(manifest).encode(), "manifest.v1+json")
with open(os.path.join(target, "index.json"), "w") as file:
    json.dump({"schemaVersion": 2, "manifests": [image]}, file)
with open(os.path.join(target, "oci-layout"), "w") as file:
    file.write('{"imageLayoutVersion":"1.0.0"}')
