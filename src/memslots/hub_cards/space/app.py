"""The Space's entry point: loads the checkpoint that `space.json` names and shows the page."""

from pathlib import Path

from memslots_space.answers import warm_up  # type: ignore[import-not-found]
from memslots_space.loading import load_compressor  # type: ignore[import-not-found]
from memslots_space.page import build_page, serve  # type: ignore[import-not-found]
from memslots_space.settings import read_settings  # type: ignore[import-not-found]


def main() -> None:
    """Serves the page until the process ends."""
    settings = read_settings(Path(__file__).with_name("space.json"))
    compressor = load_compressor(settings)
    warm_up(compressor.model)
    serve(build_page(compressor, settings), settings)  # Spaces set GRADIO_SERVER_NAME


if __name__ == "__main__":
    main()
