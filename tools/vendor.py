"""Take the pinned files of onnxruntime-web from npm into the page: `python tools/vendor.py`.

They are downloaded with the npm client, checked against the SHA-256 below, compressed reproducibly with gzip -9, and
committed, so that an installed foleybox needs neither node nor a network. To change the version, change the numbers here.
"""

import gzip
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "onnxruntime-web@1.30.0"
FILES = {  # file of the package -> SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
VENDOR = Path(__file__).resolve().parents[1] / "src" / "foleybox" / "web" / "page" / "vendor"


def main() -> None:
    """Download, check and write; nothing is written if a file is not the one expected."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", "--ignore-scripts", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        (archive,) = Path(folder).glob("*.tgz")
        contents = {}
        with tarfile.open(archive) as tar:
            for name, expected in FILES.items():
                member = tar.extractfile(f"package/dist/{name}")
                assert member is not None, name
                contents[name] = member.read()
                found = hashlib.sha256(contents[name]).hexdigest()
                if found != expected:
                    sys.exit(f"{name} of {PACKAGE} has the SHA-256 {found}, expected {expected}: nothing was written")
    VENDOR.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (VENDOR / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
        print(f"{name}: {len(content):,} bytes, {(VENDOR / f'{name}.gz').stat().st_size:,} compressed")


if __name__ == "__main__":
    main()
