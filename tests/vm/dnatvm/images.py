"""What virtual machines boot: Debian's kernels and a Debian root, fetched and made once, kept in a cache.

The cache is ``/var/tmp/dnat-test-root`` or what ``DNAT_TEST_CACHE`` names. Remove it to fetch newer kernels.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnatvm.cpio import DIRECTORY, REGULAR, archive
from dnatvm.tools import ensure_tools

REPOSITORY = Path(__file__).parents[3]
CACHE = Path(os.environ.get("DNAT_TEST_CACHE", "/var/tmp/dnat-test-root"))
MIRROR = os.environ.get("DNAT_DEBIAN_MIRROR", "http://deb.debian.org")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

KERNELS = {
    "5.10": ("debian-security bullseye-security", r"5\.10\."),
    "6.1": ("debian-security bookworm-security", r"6\.1\."),
    "6.12": ("debian-security bookworm-security", r"6\.12\."),
    "newest": ("debian trixie-backports", r"[0-9]+\."),
}
"""Archive, suite, and how the version begins. The newest of them is taken."""
CHOSEN = os.environ.get("DNAT_VM_KERNELS", " ".join(KERNELS)).split()
"""Those that tests run on."""

_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console")
_DISK_SIZE = "4G"

INIT = """\
#!/busybox sh
/busybox mkdir -p /proc /sys /dev /sysroot
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do /busybox insmod "/modules/$module"; done < /modules/order
set -- $(/busybox cat /proc/cmdline)
for word; do
    case $word in
        vm.init=*) init=${word#vm.init=} ;;
        vm.probe) echo guest-alive; /busybox poweroff -f ;;
    esac
done
n=0
while [ ! -b /dev/vdc ] && [ $n -lt 600 ]; do /busybox sleep 0.1; n=$((n+1)); done
/busybox mount -t ext4 /dev/vda /sysroot
/busybox tar -xf /dev/vdc -C /sysroot
/busybox mkdir -p /sysroot/usr/lib/modules
/busybox mount -t ext4 -o ro /dev/vdb /sysroot/usr/lib/modules
for directory in proc sys dev; do /busybox mount --move /$directory /sysroot/$directory; done
exec /busybox switch_root /sysroot $init
"""
"""Process 1 of the first file system: drivers, the root (vda), a job's files (vdc, a tar archive), modules (vdb)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Ready to boot."""

    release: str
    """What ``uname -r`` says."""
    image: Path
    initrd: Path
    modules: Path
    """ext4 image with what belongs under /lib/modules."""


def kernel(name: str) -> Kernel:
    """A kernel of ``KERNELS``. Raises RuntimeError when it cannot be fetched."""
    ensure_tools()
    directory = CACHE / "kernels" / name
    with _locked(directory):
        stamp = hashlib.sha256(f"{INIT} {_DRIVERS} {KERNELS[name]}".encode()).hexdigest()
        mark = directory / "made-by"
        if not mark.exists() or mark.read_text() != stamp:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            _make_kernel(name, directory)
            mark.write_text(stamp)
    release = (directory / "release").read_text()
    return Kernel(release, directory / "vmlinuz", directory / "initrd", directory / "modules.ext4")


def root_disk() -> Path:
    """ext4 image of a clean Debian 12 with the tools of tests; machines write to copies of their own."""
    ensure_tools()
    root = debian_root()
    disk = CACHE / "bookworm.ext4"
    with _locked(disk):
        mark, made_from = disk.with_suffix(".made-from"), root.with_name(f"{root.name}.packages").read_text()
        if not mark.exists() or mark.read_text() != made_from:
            mark.unlink(missing_ok=True)
            disk.unlink(missing_ok=True)
            _make_disk(disk, root, _DISK_SIZE)
            mark.write_text(made_from)
    return disk


def debian_root() -> Path:
    """The same as a directory."""
    root = CACHE / "bookworm"
    subprocess.run([REPOSITORY / "tests/install/root.sh", root], check=True)
    return root


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_disk(disk: Path, tree: Path, size: str) -> None:
    command = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", tree, disk, size]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _make_kernel(name: str, directory: Path) -> None:
    tree = directory / "tree"
    for package in _download(name, directory):
        subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
        package.unlink()
    if (tree / "usr/lib").exists():
        shutil.copytree(tree / "usr/lib", tree / "lib", dirs_exist_ok=True)
    (modules,) = (tree / "lib/modules").iterdir()
    subprocess.run(["depmod", "-b", tree, modules.name], check=True)
    (image,) = (*(tree / "boot").glob("vmlinuz-*"), *modules.glob("vmlinuz"))
    shutil.copy(image, directory / "vmlinuz")
    (directory / "initrd").write_bytes(_initrd(modules))
    _make_disk(directory / "modules.ext4", modules.parent, "256M")
    (directory / "release").write_text(modules.name)
    shutil.rmtree(tree)


def _download(name: str, directory: Path) -> list[Path]:
    """Packages of a kernel, with a state of apt's of our own: the machine's sources stay as they are."""
    place, start = KERNELS[name]
    archive_name, suite = place.split()
    apt = directory / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR}/{archive_name} {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Update::Error-Mode": "any",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def run(tool: str, *arguments: str) -> str:
        done = subprocess.run([tool, *options, *arguments], check=False, capture_output=True, text=True, cwd=directory)
        if done.returncode != 0:
            where = f"{MIRROR}/{archive_name} ({suite}); DNAT_DEBIAN_MIRROR names another mirror"
            raise RuntimeError(f"kernel {name} cannot be fetched from {where}: {done.stderr}")
        return done.stdout

    run("apt-get", "update", "-qq")
    found = run("apt-cache", "search", "--names-only", rf"^linux-image-{start}[0-9].*-cloud-amd64$").splitlines()
    packages = [line.split()[0] for line in found if not line.startswith("linux-image-6.1.0-0.deb11")]
    if not packages:
        raise RuntimeError(f"there is no kernel {name} in {MIRROR}/{archive_name} ({suite}) any more")
    newest = max(packages, key=lambda package: [int(digits) for digits in re.findall(r"\d+", package)])
    depends = run("apt-cache", "depends", newest)
    parts = re.findall(r"^  Depends: (linux-(?:base|binary|modules)-[0-9]\S+)$", depends, re.MULTILINE)
    run("apt-get", "download", "-qq", newest, *parts)
    shutil.rmtree(apt)
    return sorted(directory.glob("*.deb"))


def _initrd(modules: Path) -> bytes:
    order: list[str] = []
    dependencies = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(": ")
        dependencies[module.rstrip(":")] = needs.split()
    for driver in _DRIVERS:
        # What is not a module is built in.
        for module, needs in dependencies.items():
            if Path(module).name.partition(".")[0].replace("-", "_") == driver:
                order += [path for path in (*reversed(needs), module) if path not in order]
    entries = [("modules", DIRECTORY, b"")]
    for path in order:
        data = (modules / path).read_bytes()
        name = Path(path).name.removesuffix(".xz")
        entries.append((f"modules/{name}", REGULAR, lzma.decompress(data) if path.endswith(".xz") else data))
    names = "".join(f"{Path(path).name.removesuffix('.xz')}\n" for path in order)
    entries.append(("modules/order", REGULAR, names.encode()))
    entries.append(("busybox", REGULAR, (debian_root() / "bin/busybox").read_bytes()))
    entries.append(("init", REGULAR, INIT.encode()))
    return archive(entries)
