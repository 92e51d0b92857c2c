"""Whether this installation is whole: an interrupted upgrade leaves less, or two at once."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path


PACKAGE = Path(__file__).resolve().parent.parent


def damage(package: Path = PACKAGE) -> str | None:
    """Compare each file with the RECORD of the wheel; say what differs.

    ``None``: nothing does, or there is no RECORD, as in a checkout or an editable installation.
    """
    own, site, remedy = f"{package.name}/", package.parent, "pip install --force-reinstall"
    records = {}
    for folder in sorted(site.glob(f"{package.name}-*.dist-info")):
        record = folder / "RECORD"
        lines = record.read_text("utf-8").splitlines() if record.is_file() else []
        records[folder.name] = [line.rsplit(",", 2) for line in lines if line.startswith(own)]
    if len(records) > 1:
        both = " and ".join(records)
        return f"two versions are installed at once, {both} in {site}: {remedy} sglang-commfix"
    for name, wanted, _ in [line for lines in records.values() for line in lines]:
        if not wanted:
            continue  # byte code
        try:
            digest = urlsafe_b64encode(sha256((site / name).read_bytes()).digest()).decode()
        except OSError as error:
            digest = str(error.strerror)
        if wanted != f"sha256={digest.rstrip('=')}":
            why = f"{site / name} is missing, or not as it was installed"
            return f"the installation is damaged: {why}: {remedy} sglang-commfix"
    return None
