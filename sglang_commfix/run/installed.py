"""Whether this installation is whole: an interrupted upgrade leaves less, or two at once."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path


PACKAGE = Path(__file__).resolve().parent.parent


def damage(package: Path = PACKAGE) -> str | None:
    """Compare each file with the RECORD of the wheel; say what is wrong.

    ``None``: nothing, or there is no RECORD, as in a checkout or an editable installation.
    """
    own, site, remedy = package.name, package.parent, "pip install --force-reinstall sglang-commfix"
    folders = [f for f in sorted(site.glob(f"{own}-*.dist-info")) if (f / "RECORD").is_file()]
    set_aside = list(site.glob(f"~{own[1:]}-*.dist-info"))  # so pip does, until it is through
    if len(folders) > 1:
        both = " and ".join(folder.name for folder in folders)
        return f"two versions are installed at once, {both} in {site}: {remedy}"
    if set_aside and not folders:
        return f"an installation was interrupted, and left {set_aside[0]}: {remedy}"
    record = next((folder / "RECORD" for folder in folders), site / "RECORD")
    for line in record.read_text("utf-8", "replace").splitlines() if record.is_file() else ():
        name, wanted, *_ = [*line.rsplit(",", 2), "", ""]
        if not name.startswith(f"{own}/") or not wanted:
            continue  # not ours to check, or byte code
        try:
            digest = urlsafe_b64encode(sha256((site / name).read_bytes()).digest()).decode()
        except OSError as error:
            digest = str(error)
        if wanted != f"sha256={digest.rstrip('=')}":
            return f"the installation is damaged: {site / name} is missing or has changed: {remedy}"
    return None
