"""What an extra of this package consists of, so that messages name what can be installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires


def install_extra(extra: str) -> str:
    """The command that installs an extra's packages, wherever memslots itself came from.

    `pip install memslots[serve]` asks an index for memslots, which a wheel or a checkout is not
    from; the packages that the extra needs are on it.

    Args:
        extra: its name in pyproject.toml.

    Examples:
        >>> install_extra("store")
        "pip install 'pyarrow>=17.0'"
    """
    try:
        stated = requires("memslots") or []
    except PackageNotFoundError:
        stated = []
    parts = [line.replace('"', "'").partition(";") for line in stated]
    packages = [f"'{name.strip()}'" for name, _, when in parts if f"extra == '{extra}'" in when]
    if not packages:  # run from its sources, or installed before the extra was there
        return f"pip install -e '.[{extra}]' in the checkout"
    return f"pip install {' '.join(packages)}"
