"""The Space's entry point: loads the checkpoint that `space.json` names and shows the page."""

from pathlib import Path

from memslots_space.loading import load_model  # type: ignore[import-not-found]
from memslots_space.page import Page  # type: ignore[import-not-found]
from memslots_space.settings import read_settings  # type: ignore[import-not-found]


def main() -> None:
    """Serves the page until the process ends."""
    settings = read_settings(Path(__file__).with_name("space.json"))
    Page(load_model(settings), settings).serve()  # Spaces set GRADIO_SERVER_NAME


if __name__ == "__main__":
    main()
